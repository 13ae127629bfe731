import string
import tomllib
from collections.abc import Mapping
from pathlib import Path

LOCALES = Path(__file__).with_name("locales")
ENGLISH = LOCALES / "en.toml"
PLACEHOLDER = "{detail}"

# The name, the format and the conversion of a placeholder.
Placeholder = tuple[str, str | None, str | None]


class Translations:
    """The texts of the pages in one language, from its file in app/web/locales.

    Missing texts, and texts with other placeholders than the English ones, are shown in English; `gaps` lists them.
    """

    def __init__(self, locale: Path) -> None:
        self.language = locale.stem
        english = tomllib.loads(ENGLISH.read_text(encoding="utf-8"))
        english.pop("errors", None)
        self._texts = _list_texts(english)
        self._errors: dict[str, str] = {}
        self.gaps: list[str] = []
        try:
            tables = tomllib.loads(locale.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            # The message of a UnicodeDecodeError would contain the whole file.
            reason = "must be UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            self.gaps.append(f"the file cannot be read ({reason})")
            return
        self._add_errors(tables.pop("errors", {}))
        self._add_texts(_list_texts(tables))

    def _add_errors(self, errors: object) -> None:
        if not isinstance(errors, dict):
            self.gaps.append("errors must be a table")
            return
        for code, text in errors.items():
            if not isinstance(text, str) or not text.strip():
                self.gaps.append(f"errors.{code} is missing")
            elif not _has_plain_placeholders(text):
                self.gaps.append(f"errors.{code} must have placeholders such as {PLACEHOLDER}, and no other brace")
            else:
                self._errors[code] = text

    def _add_texts(self, found: Mapping[str, object]) -> None:
        for key, english in self._texts.copy().items():
            text = found.get(key)
            if not isinstance(text, str) or not text.strip():
                self.gaps.append(f"{key} is missing")
            elif _placeholders(text) != _placeholders(str(english)):
                self.gaps.append(f"{key} must have the placeholders of the English text, and no other brace")
            else:
                self._texts[key] = text
        self.gaps += [f"{key} is not a text of the pages" for key in found if key not in self._texts]

    def __call__(self, key: str, **values: object) -> str:
        return str(self._texts[key]).format(**values)

    def error(self, code: str, detail: str, /, **values: object) -> str:
        """Return the text for the error's code, or the English detail if the text is missing or lacks a value."""
        known = {name: value for name, value in values.items() if value is not None}
        try:
            return self._errors[code].format_map({**known, "detail": detail})
        except KeyError:
            return detail


def _list_texts(document: Mapping[str, object]) -> dict[str, object]:
    """Return the texts by `table.name`, and those outside of a table by their name."""
    texts: dict[str, object] = {}
    for table, entries in document.items():
        if isinstance(entries, dict):
            texts |= {f"{table}.{name}": text for name, text in entries.items()}
        else:
            texts[table] = entries
    return texts


def _placeholders(text: str) -> set[Placeholder] | None:
    """Return the placeholders of a text, or None if its braces are unbalanced."""
    try:
        parts = [*string.Formatter().parse(text)]
    except ValueError:
        return None
    return {(name, spec, conversion) for _, name, spec, conversion in parts if name is not None}


def _has_plain_placeholders(text: str) -> bool:
    found = _placeholders(text)
    return found is not None and all(name.isidentifier() and not (spec or more) for name, spec, more in found)
