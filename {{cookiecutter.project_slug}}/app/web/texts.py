import tomllib
from pathlib import Path


class Texts:
    """Every text of the pages, from one file for each language; what the services say is looked up by its sentence."""

    def __init__(self, locale: Path) -> None:
        tables: dict[str, dict[str, str]] = tomllib.loads(locale.read_text(encoding="utf-8"))
        self.language = locale.stem
        self._messages = tables.pop("messages", {})
        self._texts = {f"{table}.{name}": text for table, texts in tables.items() for name, text in texts.items()}

    def __call__(self, key: str, **values: object) -> str:
        return self._texts[key].format(**values)

    def translate(self, sentence: str) -> str:
        return self._messages.get(sentence, sentence)
