"""Files that are not backups of the service, and databases of other programs, are refused (SQLite)."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.databases import execute, migrate, server_url
from tests.test_cli import manage

pytestmark = pytest.mark.skipif(not server_url().startswith("sqlite"), reason="the tests run on another database")


@pytest.fixture
def database(empty_url: str) -> Path:
    migrate(empty_url)
    return Path(empty_url.removeprefix("sqlite:///"))


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """The database of another program, which has it open."""
    file = tmp_path / "foreign.sqlite3"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE notes (text)")
        yield file


def test_database_file_itself_is_refused_as_backup(database: Path, empty_url: str) -> None:
    backed_up = manage(empty_url, "db", "backup", str(database))
    restored = manage(empty_url, "db", "restore", str(database), "--yes")

    assert (backed_up.returncode, restored.returncode) == (1, 1)
    for outcome in (backed_up, restored):
        assert "is the database itself: name another file" in outcome.stderr
    assert manage(empty_url, "db", "check").returncode == 0


def test_a_database_of_another_program_is_not_replaced(
    database: Path, empty_url: str, foreign: Path, tmp_path: Path
) -> None:
    manage(empty_url, "db", "backup", str(tmp_path / "backup"))

    refused = manage(f"sqlite:///{foreign}", "db", "restore", str(tmp_path / "backup"), "--yes")

    assert refused.returncode == 1
    assert "is not a database of this service: correct DATABASE_URL or DATABASE_NAME" in refused.stderr
    assert execute(f"sqlite:///{foreign}", "SELECT count(*) FROM notes") == [(0,)]
    assert manage(empty_url, "db", "restore", str(tmp_path / "backup"), "--yes").returncode == 0


def test_copy_with_changes_in_wal_file_is_refused(database: Path, empty_url: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("DELETE FROM users")
        connection.execute("CREATE TABLE later (id)")
        copy = tmp_path / "copy"
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").write_bytes(Path(f"{database}{suffix}").read_bytes())

    refused = manage(empty_url, "db", "restore", str(copy), "--yes")

    assert refused.returncode == 1
    assert "its last changes are in copy-wal. Make a copy with `db backup`" in refused.stderr


def test_files_of_other_programs_are_refused(database: Path, empty_url: str, foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "page").write_text("<html>")
    (tmp_path / "empty").touch()
    files = [foreign.rename(tmp_path / "notes"), tmp_path / "page", tmp_path / "empty"]

    refused = [manage(empty_url, "db", "restore", str(file), "--yes") for file in files]

    assert [outcome.returncode for outcome in refused] == [1, 1, 1]
    assert not any("Traceback" in outcome.stderr for outcome in refused)
    assert manage(empty_url, "db", "check").returncode == 0
