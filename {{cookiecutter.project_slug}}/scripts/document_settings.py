"""Document the settings from their classes: `python -m scripts.document_settings` (`make docs`)."""

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from app.core.config.base import Configuration
from app.core.config.settings import Settings
from app.features import SETTINGS

ROOT = Path(__file__).resolve().parents[1]
README, REFERENCE, EXAMPLE = "README.md", "docs/settings.md", ".env.example"
README_TABLE = re.compile(r"(?m)^\| variable \| default \| meaning \|\n(?:[|#].*\n)+")
README_ROW = re.compile(r"(?m)^\| `(?P<name>[A-Z0-9_]+)` \|.*\n")
REFERENCE_SECTION = re.compile(r"(?m)^## (?P<title>.+)\n\n(?:\|.*\n)+")
EXAMPLE_SECTION = re.compile(r"(?m)^# --- (?P<title>.+)\n(?:# [A-Z0-9_]+=.*\n)+")
REFERENCE_HEAD = "| variable | default | values | meaning |\n|---|---|---|---|\n"
FORMATS = {"email": "e-mail address", "hostname": "host", "password": "secret", "path": "path", "uri": "URL"}


@dataclass(frozen=True)
class Setting:
    name: str
    default: str
    values: str
    meaning: str

    @property
    def cells(self) -> str:
        return f"| `{self.name}` | `{self.default}` |" if self.default else f"| `{self.name}` | |"


def list_settings() -> dict[str, list[Setting]]:
    """Return the settings by the title of their class."""
    groups: dict[str, list[Setting]] = {}
    documented: set[str] = set()
    for kind in (*reversed(Settings.__mro__), *SETTINGS):
        if not issubclass(kind, Configuration):
            continue
        schema = kind.model_json_schema()
        names = [name for name in kind.model_fields if name not in documented]
        if names:
            title = schema["title"].removesuffix("Settings")
            groups.setdefault(title, []).extend(_describe(kind, name, schema) for name in names)
        documented.update(names)
    return groups


def render_documents() -> dict[str, str]:
    """Return the new text of each document: its rows and sections of settings are updated, other text is kept."""
    groups = list_settings()
    reference = {
        title: f"## {title}\n\n{REFERENCE_HEAD}"
        + "".join(f"{setting.cells} {setting.values} | {setting.meaning} |\n" for setting in group)
        for title, group in groups.items()
    }
    example = {
        title: f"# --- {title}\n" + "".join(f"# {setting.name}={setting.default}\n" for setting in group)
        for title, group in groups.items()
    }
    return {
        README: _replace_rows(_read(README), groups),
        REFERENCE: _replace_sections(_read(REFERENCE), REFERENCE_SECTION, reference),
        EXAMPLE: _replace_sections(_read(EXAMPLE), EXAMPLE_SECTION, example),
    }


def _describe(kind: type[Configuration], name: str, schema: dict[str, Any]) -> Setting:
    field = kind.model_fields[name]
    default = field.get_default(call_default_factory=True)
    return Setting(
        name=name.upper(),
        default="" if field.is_required() or default is None else _show(default),
        values=_describe_values(schema["properties"][name], schema),
        meaning=(field.description or "").replace("|", "\\|"),
    )


def _show(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(_show, value))
    return str(value).lower() if isinstance(value, bool) else str(value.value if isinstance(value, Enum) else value)


def _describe_values(schema: dict[str, Any], document: dict[str, Any]) -> str:
    """Return the type and the bounds in a JSON schema. Null, which stands for an unset value, is left out."""
    if "$ref" in schema:
        return _describe_values(document["$defs"][schema["$ref"].rpartition("/")[2]], document)
    if "anyOf" in schema:
        options = [option for option in schema["anyOf"] if option.get("type") != "null"]
        return " or ".join(_describe_values(option, document) for option in options)
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind: str = schema.get("type", "text")
    if kind in ("integer", "number"):
        low, high = schema.get("minimum"), schema.get("maximum")
        return kind if low is None or high is None else f"{kind}, {low:.15g} to {high:.15g}"
    names = {"array": "list", "boolean": "`true`, `false`", "string": FORMATS.get(schema.get("format", ""), "text")}
    return names.get(kind, kind)


def _replace_rows(text: str, groups: dict[str, list[Setting]]) -> str:
    """Rewrite the rows of the table, which lists only some settings; remove rows of settings that do not exist."""
    rows = {setting.name: f"{setting.cells} {setting.meaning} |\n" for group in groups.values() for setting in group}
    return README_TABLE.sub(lambda table: README_ROW.sub(lambda row: rows.get(row["name"], ""), table[0]), text)


def _replace_sections(text: str, pattern: re.Pattern[str], sections: dict[str, str]) -> str:
    """Rewrite each section in its place, remove sections with unknown titles, and append missing sections."""
    missing = dict(sections)
    text = pattern.sub(lambda match: missing.pop(match["title"], ""), text)
    text = "\n".join([text, *missing.values()])
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    for name, text in render_documents().items():
        (ROOT / name).write_text(text, encoding="utf-8", newline="\n")
