"""Notes about releases: the entries of a changelog that an older one does not have."""

import re
from collections.abc import Iterator

SECTION = re.compile(r"## (.+)")


def find_new_entries(old: str, new: str) -> dict[str, list[str]]:
    """Return the new entries by section; an entry that moved to another section is not new."""
    known = {_normalize(entry) for _, entry in _list_entries(old)}
    found: dict[str, list[str]] = {}
    for section, entry in _list_entries(new):
        if _normalize(entry) not in known:
            found.setdefault(section, []).append(entry)
    return found


def _list_entries(changelog: str) -> Iterator[tuple[str, str]]:
    """Yield each item and paragraph below a section with the title of the section."""
    section = ""
    entry: list[str] = []
    for line in [*changelog.splitlines(), ""]:
        heading = SECTION.fullmatch(line)
        if entry and (heading or not line.strip() or line.startswith("- ")):
            yield section, "\n".join(entry)
            entry = []
        if heading:
            section = heading[1]
        elif section and line.strip():
            entry.append(line)


def _normalize(entry: str) -> str:
    return " ".join(entry.split())
