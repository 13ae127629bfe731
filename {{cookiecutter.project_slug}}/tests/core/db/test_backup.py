import asyncio
import re
from pathlib import Path

import pytest
from sqlalchemy import URL

from app.accounts.commands import create_admin_user
from app.accounts.users.schemas import UserCreate
from app.core.db import migrations
from app.core.db.backup import BackupError, restore_backup, write_backup
from app.core.db.engine import create_owner_engine
from app.core.db.revisions import head_revision
from tests.support.databases import execute, make_settings, migrate
from tests.test_cli import manage

EMAILS = "SELECT email FROM users ORDER BY email"


@pytest.fixture
def filled_url(empty_url: str) -> str:
    """A database with the schema and one account."""
    migrate(empty_url)
    data = UserCreate.model_validate({"email": "ada@example.com", "password": "correct horse battery staple"})
    asyncio.run(create_admin_user(make_settings(empty_url), data))
    return empty_url


def parse(url: str) -> URL:
    return make_settings(url).url


def test_restore_recovers_changed_rows_and_drops_later_tables(filled_url: str, tmp_path: Path) -> None:
    file = write_backup(parse(filled_url), tmp_path / "backup")
    execute(filled_url, "UPDATE users SET email = 'lost@example.com'")
    execute(filled_url, "CREATE TABLE later (id INTEGER)")

    restore_backup(parse(filled_url), file)

    assert execute(filled_url, EMAILS) == [("ada@example.com",)]
    assert manage(filled_url, "db", "check").returncode == 0
    with pytest.raises(Exception, match="later"):
        execute(filled_url, "SELECT * FROM later")


def test_a_restored_database_can_be_backed_up_and_restored_again(filled_url: str, tmp_path: Path) -> None:
    restore_backup(parse(filled_url), write_backup(parse(filled_url), tmp_path / "first"))
    second = write_backup(parse(filled_url), tmp_path / "second")
    execute(filled_url, "DELETE FROM users")

    restore_backup(parse(filled_url), second)

    assert execute(filled_url, EMAILS) == [("ada@example.com",)]


def test_an_operator_backs_up_and_restores(filled_url: str, tmp_path: Path) -> None:
    backed_up = manage(filled_url, "db", "backup", str(tmp_path / "backup"))
    execute(filled_url, "DELETE FROM users")
    restored = manage(filled_url, "db", "restore", str(tmp_path / "backup"), "--yes")

    assert (backed_up.returncode, restored.returncode) == (0, 0), backed_up.stderr + restored.stderr
    assert f"Done: {tmp_path / 'backup'}" in backed_up.stdout
    assert execute(filled_url, EMAILS) == [("ada@example.com",)]


def test_a_backup_is_restored_into_an_empty_database(filled_url: str, tmp_path: Path) -> None:
    file = write_backup(parse(filled_url), tmp_path / "backup")
    asyncio.run(migrations.downgrade(make_settings(filled_url), "base"))

    restore_backup(parse(filled_url), file)

    assert execute(filled_url, EMAILS) == [("ada@example.com",)]


async def test_open_connections_see_restored_data(filled_url: str, tmp_path: Path) -> None:
    file = write_backup(parse(filled_url), tmp_path / "backup")
    engine = create_owner_engine(make_settings(filled_url))
    async with engine.connect() as connection:
        await connection.exec_driver_sql("DELETE FROM users")
        await connection.commit()

        restore_backup(parse(filled_url), file)

        assert (await connection.exec_driver_sql(EMAILS)).fetchall() == [("ada@example.com",)]
    await engine.dispose()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 1])
def test_a_truncated_backup_is_refused_and_destroys_nothing(filled_url: str, tmp_path: Path, share: float) -> None:
    file = write_backup(parse(filled_url), tmp_path / "backup")
    content = file.read_bytes()
    file.write_bytes(content[: int((len(content) - 1) * share)])

    with pytest.raises(BackupError):
        restore_backup(parse(filled_url), file)

    assert execute(filled_url, EMAILS) == [("ada@example.com",)]


def test_file_that_is_not_a_backup_is_refused_without_traceback(filled_url: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("DROP SCHEMA public CASCADE;")

    refused = manage(filled_url, "db", "restore", str(tmp_path / "text"), "--yes")

    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert execute(filled_url, EMAILS) == [("ada@example.com",)]


def test_failed_backup_exits_non_zero_and_keeps_previous_backup(filled_url: str, tmp_path: Path) -> None:
    file = write_backup(parse(filled_url), tmp_path / "backup")
    content = file.read_bytes()
    execute(filled_url, "DROP TABLE alembic_version")

    failed = manage(filled_url, "db", "backup", str(file))

    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert file.read_bytes() == content
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_a_folder_keeps_the_newest_backups(filled_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    first = write_backup(parse(filled_url), folder)
    old = [first.with_name(re.sub(r"\d{8}T\d{6}Z", f"2020010{day}T000000Z", first.name)) for day in (1, 2, 3)]
    for file in old:
        file.touch()
    (folder / "notes.txt").touch()

    newest = write_backup(parse(filled_url), folder, keep=2)

    assert {*folder.iterdir()} in ({newest, first, folder / "notes.txt"}, {newest, old[2], folder / "notes.txt"})
    assert newest.stat().st_mode & 0o777 == 0o600


def test_a_restore_needs_consent(filled_url: str, tmp_path: Path) -> None:
    file = write_backup(parse(filled_url), tmp_path / "backup")
    execute(filled_url, "UPDATE users SET email = 'kept@example.com'")

    declined = manage(filled_url, "db", "restore", str(file), stdin="n\n")

    assert declined.returncode == 1
    assert execute(filled_url, EMAILS) == [("kept@example.com",)]


def test_a_backup_of_a_newer_release_is_refused_and_destroys_nothing(filled_url: str, tmp_path: Path) -> None:
    execute(filled_url, "UPDATE alembic_version SET version_num = '9999'")
    file = write_backup(parse(filled_url), tmp_path / "backup")
    execute(filled_url, f"UPDATE alembic_version SET version_num = '{head_revision()}'")  # noqa: S608  # SQL of this test, without input from outside

    refused = manage(filled_url, "db", "restore", str(file), "--yes")

    assert refused.returncode == 1
    assert (
        "has the revision 9999, which this release of the service does not know: restore with a newer release"
        in refused.stderr
    )
    assert execute(filled_url, "SELECT version_num FROM alembic_version") == [(head_revision(),)]
