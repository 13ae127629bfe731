"""Copies into a database whose tables another role owns, and of what only one of the kinds of databases can store."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import delete, func, make_url, select
from sqlalchemy.exc import DBAPIError

from app.core.config.database_url import parse_url
from app.core.db.copy.errors import CopyError
from app.core.db.copy.source import open_source
from tests.core.db.test_copy import ADD_EVENT, USERS, Example, add_examples, add_user, copy, create_file
from tests.support.databases import create_test_database, execute, make_settings, migrate, server_url
from tests.test_cli import manage

pytestmark = pytest.mark.skipif(server_url().startswith("sqlite"), reason="the tests run on SQLite")

PASSWORD = "correct-horse"
STATE = """
    SELECT conname, condeferrable, condeferred FROM pg_constraint WHERE contype = 'f'
    UNION ALL SELECT relname || '.' || attname, attidentity = 'a', NULL FROM pg_attribute
    JOIN pg_class ON pg_class.oid = attrelid WHERE attidentity <> '' ORDER BY 1
"""


@pytest.fixture
def roles() -> Iterator[dict[str, str]]:
    names = {name: f"{name}_{uuid4().hex}" for name in ("owner", "service")}
    for name in names.values():
        execute(server_url(), f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
    yield names
    for name in names.values():
        execute(server_url(), f"DROP ROLE {name}")


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Example]:
    with create_test_database(tmp_path) as url:
        migrate(url)
        yield Example(url)


@pytest.fixture
def target(live_url: str) -> Example:
    return Example(live_url)


def with_role(url: str, role: str) -> str:
    return make_url(url).set(username=role, password=PASSWORD).render_as_string(hide_password=False)


def test_the_owner_copies_and_the_services_role_keeps_its_rights(
    roles: dict[str, str], source: Example, tmp_path: Path
) -> None:
    add_user(source)
    source.execute(ADD_EVENT.format(id=uuid4().hex, at=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"))
    with create_test_database(tmp_path) as url:
        execute(url, f"ALTER DATABASE {make_url(url).database} OWNER TO {roles['owner']}")
        target = Example(with_role(url, roles["service"]))
        owner = {"DATABASE_OWNER_USER": roles["owner"], "DATABASE_OWNER_PASSWORD": PASSWORD}
        assert manage(target.url, "db", "upgrade", **owner).returncode == 0

        refused = copy(source, target)
        copied = copy(source, target, **owner)

        assert refused.returncode == 1
        assert "set DATABASE_OWNER_USER" in refused.stderr
        assert copied.returncode == 0, copied.stderr
        assert (target.count("users"), target.count("audit_events")) == (1, 1)
        add_user(target, "second@example.com")
        with pytest.raises(DBAPIError, match="permission denied"):
            target.execute("DELETE FROM audit_events")


def test_constraints_and_identities_are_as_before(source: Example, target: Example) -> None:
    add_examples(source, target)
    target.execute(
        "ALTER TABLE example_boxes ALTER number DROP DEFAULT",
        "DROP SEQUENCE example_boxes_number_seq",
        "ALTER TABLE example_boxes ALTER number ADD GENERATED ALWAYS AS IDENTITY",
    )
    before = execute(target.url, STATE)

    target.copy_from(source)

    assert execute(target.url, STATE) == before
    assert ("example_boxes.number", True, None) in before
    assert execute(target.url, "INSERT INTO example_boxes DEFAULT VALUES RETURNING number") == [(11,)]


def test_a_sequence_is_as_before_if_the_copy_fails(target: Example, tmp_path: Path) -> None:
    source = create_file(tmp_path)
    add_examples(source, target)
    source.execute("DELETE FROM example_boxes WHERE number = 5")

    with pytest.raises(DBAPIError):
        target.copy_from(source)

    assert execute(target.url, "INSERT INTO example_boxes DEFAULT VALUES RETURNING number") == [(1,)]


def test_a_nul_character_is_refused_with_its_row(target: Example, tmp_path: Path) -> None:
    source = create_file(tmp_path)
    add_examples(source, target)
    source.execute("UPDATE example_things SET body = 'a' || char(0)")

    with pytest.raises(CopyError, match=r"id=\w+: body contains a NUL character, which PostgreSQL cannot store"):
        target.copy_from(source)

    assert target.count("example_things") == 0


def test_the_source_is_read_in_one_snapshot_and_cannot_be_written(target: Example) -> None:
    add_user(target)
    with open_source(parse_url(target.url), make_settings(target.url)) as connection:
        add_user(target, "later@example.com")

        assert connection.execute(select(func.count()).select_from(USERS)).scalar_one() == 1
        with pytest.raises(DBAPIError, match="read-only transaction"):
            connection.execute(delete(USERS))


def test_tables_of_other_owners_are_left_alone(roles: dict[str, str], source: Example, target: Example) -> None:
    add_user(source)
    target.execute(f"GRANT CREATE ON SCHEMA public TO {roles['owner']}")
    execute(with_role(target.url, roles["owner"]), "CREATE TABLE example_strangers AS SELECT 1 AS id")

    copied = copy(source, target)

    assert (copied.returncode, copied.stderr) == (0, "")
    target.execute(f"DROP OWNED BY {roles['owner']}")


@pytest.mark.parametrize("value", ["infinity", "-infinity", "0044-03-15 BC", "10000-01-01 00:00:00+00"])
def test_times_beyond_those_of_the_service_are_refused_with_their_row(
    source: Example, target: Example, value: str
) -> None:
    for email in ("ada@example.com", "second@example.com"):
        add_user(source, email)
    source.execute(f"UPDATE users SET email_verified_at = '{value}' WHERE email LIKE 's%%'")  # noqa: S608  # SQL of this test, without input from outside

    outcome = copy(source, target)

    assert outcome.returncode == 1
    assert re.search(r"users, id=\S+: email_verified_at is not in the years 1 to 9999\.", outcome.stderr)
    assert target.count() == 0
