"""Joins branches of migrations, which come together when two developers, or the template, add migrations."""

import ast
from importlib.util import cache_from_source
from pathlib import Path
from typing import TYPE_CHECKING

from app.core.db.revisions import MigrationsError, read_migrations

if TYPE_CHECKING:
    from alembic.script import Script, ScriptDirectory


def reparent(revision: str, onto: str | None = None) -> tuple[str, str]:
    """Let the branch that contains `revision` follow the last migration of another branch.

    Writes `down_revision` in the file of the branch's first migration, and returns that migration and its new
    predecessor. `onto` is the last migration of the other branch; it may be left out if there is only one. Raises
    MigrationsError, and changes no file, if there is no other branch or the choice is not clear.
    """
    scripts = read_migrations()
    known = {script.revision for script in scripts.walk_revisions()}
    if revision not in known:
        raise MigrationsError(f"There is no migration {revision}. The last ones are {_join(scripts.get_heads())}.")
    others = [head for head in scripts.get_heads() if revision not in _list_chain(scripts, head)]
    if not others:
        raise MigrationsError(f"Every branch contains {revision}: choose a migration of one branch only.")
    if onto is None and len(others) > 1:
        raise MigrationsError(f"There are several other branches: choose --onto from {_join(others)}.")
    target = onto or others[0]
    if target not in others:
        raise MigrationsError(f"{target} is not the last of another branch: choose --onto from {_join(others)}.")
    first = _find_first(scripts, revision, target)
    _write_predecessor(Path(first.path), target)
    return first.revision, target


def _join(revisions: list[str]) -> str:
    return " and ".join(sorted(revisions))


def _list_chain(scripts: "ScriptDirectory", head: str) -> set[str]:
    return {script.revision for script in scripts.iterate_revisions(head, "base")}


def _find_first(scripts: "ScriptDirectory", revision: str, other: str) -> "Script":
    """Return the first migration of the branch that is not part of the other branch."""
    shared = _list_chain(scripts, other)
    script = scripts.get_revision(revision)
    while isinstance(script.down_revision, str) and script.down_revision not in shared:
        script = scripts.get_revision(script.down_revision)
    if isinstance(script.down_revision, tuple):
        raise MigrationsError(f"{script.revision} has several predecessors: edit its `down_revision` by hand.")
    return script


def _write_predecessor(file: Path, predecessor: str) -> None:
    source = file.read_bytes()
    value = _find_predecessor(ast.parse(source))
    lines = source.splitlines(keepends=True)
    line = lines[value.lineno - 1]
    # The columns of a syntax tree count bytes.
    lines[value.lineno - 1] = line[: value.col_offset] + f'"{predecessor}"'.encode() + line[value.end_col_offset :]
    file.write_bytes(b"".join(lines))
    # Python would run the old code: it compares only the size of a file and the second of its last change.
    Path(cache_from_source(str(file))).unlink(missing_ok=True)


def _find_predecessor(migration: ast.Module) -> ast.expr:
    for statement in migration.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id="down_revision")], value=value):
                return value
            case ast.AnnAssign(target=ast.Name(id="down_revision"), value=ast.expr() as value):
                return value
    raise AssertionError("Alembic has read a migration without down_revision")
