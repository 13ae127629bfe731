import string
import tomllib
from collections.abc import Mapping
from pathlib import Path

LOCALES = Path(__file__).with_name("locales")
ENGLISH = LOCALES / "en.toml"


class Translations:
    """Every text of the pages, from one file for each language; what the services say is looked up by its sentence.

    Missing texts, and texts whose placeholders do not match, fall back to English; `gaps` names them.
    """

    def __init__(self, locale: Path) -> None:
        self.language = locale.stem
        self._texts = _list_texts(tomllib.loads(ENGLISH.read_text(encoding="utf-8")))
        self._messages: dict[str, str] = {}
        self.gaps: list[str] = []
        try:
            tables = tomllib.loads(locale.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            # The decoder of UTF-8 explains it with all of the file's bytes.
            reason = "must be UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            self.gaps.append(f"the file cannot be read ({reason})")
            return
        self._take_messages(tables.pop("messages", {}))
        self._take_texts(_list_texts(tables))

    def _take_messages(self, messages: object) -> None:
        if not isinstance(messages, dict):
            self.gaps.append("messages must be a table")
            return
        for sentence, text in messages.items():
            if isinstance(text, str) and text.strip():
                self._messages[sentence] = text
            else:
                self.gaps.append(f'messages."{sentence}" is missing')

    def _take_texts(self, found: Mapping[str, object]) -> None:
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

    def translate(self, sentence: str) -> str:
        return self._messages.get(sentence, sentence)


def _list_texts(document: Mapping[str, object]) -> dict[str, object]:
    """Return the texts by `table.name`; what is in no table, by its name."""
    texts: dict[str, object] = {}
    for table, entries in document.items():
        if isinstance(entries, dict):
            texts |= {f"{table}.{name}": text for name, text in entries.items()}
        else:
            texts[table] = entries
    return texts


def _placeholders(text: str) -> set[tuple[str, str | None, str | None]] | None:
    """Return the name, the format and the conversion of each; None where a brace is alone."""
    try:
        parts = [*string.Formatter().parse(text)]
    except ValueError:
        return None
    return {(name, spec, conversion) for _, name, spec, conversion in parts if name is not None}
