"""Migrations of a project, read without running them."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FOLDER = "migrations/versions/"


@dataclass(frozen=True)
class Migration:
    path: str
    revision: str
    parents: tuple[str, ...]


def is_migration(path: str, prefix: str = "") -> bool:
    name = path.removeprefix(prefix)
    return path.startswith(prefix) and name.startswith(FOLDER) and name.endswith(".py")


def parse_migration(path: str, source: str) -> Migration | None:
    """Return the migration, or None if the file is not one or contains a conflict."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return None
    values = dict(filter(None, map(_read_assignment, statements)))
    revision, down = values.get("revision"), values.get("down_revision")
    if not isinstance(revision, str):
        return None
    parents = (down,) if isinstance(down, str) else tuple(down or ())
    return Migration(path, revision, parents)


def _read_assignment(statement: ast.stmt) -> tuple[str, Any] | None:
    match statement:
        case (
            ast.Assign(targets=[ast.Name(id=name)], value=value)
            | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
        ) if name in {"revision", "down_revision"}:
            try:
                return name, ast.literal_eval(value)
            except ValueError:
                return None
    return None


@dataclass(frozen=True)
class Chain:
    """The ends of the chain of migrations after an update; Alembic upgrades a chain with one end."""

    heads: list[str]
    own_heads: list[str]
    # New migrations whose predecessor has another successor, and those whose predecessor does not exist.
    branches: list[Migration]
    orphans: list[Migration]


def read_chain(sources: Mapping[str, str], new: set[str]) -> Chain:
    """Read the migrations; `new` are the paths of those that the update adds."""
    found = [migration for path, text in sources.items() if (migration := parse_migration(path, text))]
    added = sorted((migration for migration in found if migration.path in new), key=lambda each: each.revision)
    own = [migration for migration in found if migration.path not in new]
    revisions = {migration.revision for migration in found}
    followed = {parent for migration in own for parent in migration.parents}
    return Chain(
        heads=_find_heads(found),
        own_heads=_find_heads(own),
        branches=[each for each in added if not followed.isdisjoint(each.parents)],
        orphans=[each for each in added if not revisions.issuperset(each.parents)],
    )


def _find_heads(migrations: list[Migration]) -> list[str]:
    return sorted({each.revision for each in migrations} - {parent for each in migrations for parent in each.parents})
