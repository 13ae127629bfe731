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
        case ast.Assign(targets=[ast.Name(id=name)], value=value) | ast.AnnAssign(
            target=ast.Name(id=name), value=ast.expr() as value
        ) if name in {"revision", "down_revision"}:
            try:
                return name, ast.literal_eval(value)
            except ValueError:
                return None
    return None


def find_heads(sources: Mapping[str, str]) -> list[str]:
    """Return the revisions that no other migration follows; a chain that Alembic can upgrade has one."""
    migrations = _parse(sources)
    return sorted({each.revision for each in migrations} - {parent for each in migrations for parent in each.parents})


def find_branches(sources: Mapping[str, str], new: set[str]) -> list[str]:
    """Return the new migrations that begin a second chain: their parent has another successor, or does not exist."""
    migrations = _parse(sources)
    revisions = {migration.revision for migration in migrations}
    followed = {parent for migration in migrations if migration.path not in new for parent in migration.parents}
    return sorted(
        migration.revision
        for migration in migrations
        if migration.path in new and any(each in followed or each not in revisions for each in migration.parents)
    )


def _parse(sources: Mapping[str, str]) -> list[Migration]:
    return [found for path, text in sources.items() if (found := parse_migration(path, text))]
