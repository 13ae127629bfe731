"""`db reparent`, which joins branches of migrations."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import cli
from app.core.db import migrations
from app.core.db.branches import reparent
from app.core.db.revisions import MigrationsError, head_revision, read_revisions
from tests.support.databases import add_migration, execute_async, make_settings


@pytest.fixture
def shared(migrations_folder: Path) -> str | None:
    """Add a branch `mine` and a branch `yours` of two migrations, and return their common predecessor."""
    shared = head_revision()
    for revision, previous in (("mine", shared), ("yours", shared), ("yours_too", "yours")):
        add_migration(migrations_folder, revision, previous)
    read_revisions.cache_clear()
    return shared


def read_files(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text(encoding="utf-8") for file in (folder / "versions").glob("*.py")}


@pytest.mark.parametrize("revision", ["yours", "yours_too"])
def test_whole_branch_follows_the_other_branch(migrations_folder: Path, shared: str | None, revision: str) -> None:
    before = read_files(migrations_folder)

    result = CliRunner().invoke(cli, ["db", "reparent", revision])

    assert (result.exit_code, result.output.partition(".")[0]) == (0, "yours follows mine now"), result.output
    assert head_revision() == "yours_too"
    changed = before["yours_extra.py"].replace(f"down_revision = {shared!r}", 'down_revision = "mine"')
    assert read_files(migrations_folder) == before | {"yours_extra.py": changed}


async def test_database_that_has_run_one_branch_runs_the_other(migrations_folder: Path, empty_url: str) -> None:
    settings, shared = make_settings(empty_url), head_revision()
    add_migration(migrations_folder, "mine", shared)
    read_revisions.cache_clear()
    await migrations.upgrade(settings)
    add_migration(migrations_folder, "yours", shared)

    reparent("yours")
    read_revisions.cache_clear()
    await migrations.upgrade(settings)

    assert await execute_async(empty_url, "SELECT version_num FROM alembic_version") == [("yours",)]


def test_one_of_several_other_branches_must_be_named(migrations_folder: Path, shared: str | None) -> None:
    add_migration(migrations_folder, "theirs", shared)

    with pytest.raises(MigrationsError, match="choose --onto from mine and theirs"):
        reparent("yours")
    with pytest.raises(MigrationsError, match="yours_too is not the last of another branch: choose --onto from mine"):
        reparent("yours", "yours_too")

    assert reparent("yours", "theirs") == ("yours", "theirs")
    assert reparent("mine", "yours_too") == ("mine", "yours_too")
    assert head_revision() == "mine"


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("revision", "reason"),
    [
        ("absent", "There is no migration absent. The last ones are mine and yours_too."),
        ("0001", "Every branch contains 0001: choose a migration of one branch only."),
    ],
)
def test_unsuitable_migration_is_refused(migrations_folder: Path, revision: str, reason: str) -> None:
    before = read_files(migrations_folder)

    result = CliRunner().invoke(cli, ["db", "reparent", revision])

    assert (result.exit_code, result.output) == (1, f"{reason}\n")
    assert read_files(migrations_folder) == before


def test_migration_with_several_predecessors_is_refused(migrations_folder: Path, shared: str | None) -> None:
    add_migration(migrations_folder, "theirs", shared)
    add_migration(migrations_folder, "merged", "yours_too")
    file = migrations_folder / "versions" / "merged_extra.py"
    text = file.read_text(encoding="utf-8").replace("'yours_too'", "('yours_too', 'theirs')")
    file.write_text(text, encoding="utf-8")

    with pytest.raises(MigrationsError, match="merged has several predecessors: edit its `down_revision` by hand"):
        reparent("merged")


@pytest.mark.usefixtures("shared")
def test_only_the_value_is_rewritten(migrations_folder: Path) -> None:
    file = migrations_folder / "versions" / "yours_extra.py"
    line = r'é = "ü"; down_revision: str | None = \1  # ß'
    text = re.sub("down_revision = (.*)", line, file.read_text(encoding="utf-8"))
    file.write_text(text, encoding="utf-8", newline="\r\n")

    reparent("yours")

    assert 'é = "ü"; down_revision: str | None = "mine"  # ß\r\n'.encode() in file.read_bytes()
