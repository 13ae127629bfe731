"""Copies between two databases of the tested kind, and from a database file; the rows contain hostile values."""

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.accounts.models import User
from app.core.config.database_url import parse_url
from app.core.db import models
from app.core.db.copy import CopiedTable, Options, copy_database
from app.core.db.copy.errors import CopyError
from app.core.db.copy.source import open_source
from app.core.db.engine import create_owner_engine
from app.core.db.models import IdMixin
from app.core.db.revisions import head_revision
from app.core.project import ROOT
from tests.support.databases import create_test_database, make_settings, migrate, server_url, unreachable_url
from tests.test_cli import ENVIRONMENT, Outcome, manage

T = TypeVar("T")

IS_SQLITE = server_url().startswith("sqlite")
TEXTS = [
    "",
    "'",
    '"; DROP TABLE users; --',
    "NULL",
    "\\N",
    "\t\r\n",
    "日本語 Ω ñ n\u0303",
    "👩‍👩‍👧‍👦 \U0010ffff",
    "a" * 300_000,
]
LATER = {"email": "later@example.com", "at": "2026-01-02 03:04:05"}
ADD_USER = """
    INSERT INTO users (id, email, name, password_hash, is_active, is_admin, created_at, updated_at)
    VALUES ('{id}', '{email}', 'Ω', 'hash', true, false, '{at}', '{at}')
"""
ADD_EVENT = """
    INSERT INTO audit_events (id, event, device, details, created_at) VALUES ('{id}', 'an event', '', 'null', '{at}')
"""


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Base(DeclarativeBase):
    # Separate metadata, because the tables of the service's metadata are compared with the migrations.
    metadata = MetaData(naming_convention=models.Base.metadata.naming_convention)
    type_annotation_map = models.Base.type_annotation_map


class Thing(IdMixin, Base):
    """A table with a column of each type, a reference to itself, and one that closes a cycle."""

    __tablename__ = "example_things"

    parent_id: Mapped[UUID | None] = mapped_column(ForeignKey("example_things.id"))
    box_id: Mapped[int | None] = mapped_column(ForeignKey("example_boxes.number", use_alter=True))
    title: Mapped[str | None] = mapped_column(String(20))
    body: Mapped[str | None] = mapped_column(Text)
    small: Mapped[int | None] = mapped_column(sa.SmallInteger)
    count: Mapped[int | None]
    large: Mapped[int | None] = mapped_column(sa.BigInteger)
    ratio: Mapped[float | None]
    price: Mapped[Decimal | None]
    is_new: Mapped[bool | None]
    color: Mapped[Color | None]
    day: Mapped[date | None]
    hour: Mapped[time | None]
    moment: Mapped[datetime | None]
    content: Mapped[bytes | None]
    details: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    length: Mapped[timedelta | None] = mapped_column(sa.Interval)


class Box(Base):
    __tablename__ = "example_boxes"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    thing_id: Mapped[UUID | None] = mapped_column(ForeignKey("example_things.id"))


# Reports each row, so that the test knows when rows have been inserted, and takes a while for each.
SLOW_COPY = """
import time
import app.core.db.copy as copying
from app import cli

def report(line):
    print(line, flush=True)
    time.sleep(0.05)

copying.BATCH_ROWS = copying.REPORT_ROWS = 1
cli.typer.echo = report
cli.cli(["db", "copy"])
"""
SLOW_ROWS = 200
USERS, THINGS, BOXES = (cast(sa.Table, each.__table__) for each in (User, Thing, Box))
# One value of each list is in each row.
VALUES: dict[str, list[object]] = {
    "title": ["", "x" * 20, "👩‍👩‍👧‍👦" * 2, None],
    "body": [*TEXTS, None],
    "small": [-(2**15), 2**15 - 1, 0, None],
    "count": [-(2**31), 2**31 - 1, 0, None],
    "large": [-(2**63), 2**63 - 1, 0, None],
    "ratio": [0.1 + 0.2, -0.0, 1.7976931348623157e308, 5e-324, float("inf"), None],
    "price": [Decimal("9999999999.99"), Decimal("-0.01"), Decimal("0.10"), Decimal(100), None],
    "is_new": [True, False, None],
    "color": [Color.RED, Color.BLUE, None],
    "day": [date.min, date.max, date(2000, 2, 29), None],
    "hour": [time.min, time.max, None],
    "moment": [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC), datetime(1969, 7, 20, tzinfo=UTC)],
    "content": [b"", bytes(range(256)), None],
    "details": [{"a": [1, 0.1, None, "\0 \ud800"]}, [], "", 5, False, {"n": 2**70}, sa.JSON.NULL, sa.null()],
    "length": [timedelta(days=-1), timedelta(microseconds=1), None],
}


@dataclass(frozen=True)
class Example:
    """A database with the service's schema and, for most tests, the tables of the examples."""

    url: str

    def run(self, function: Callable[[sa.Connection], T]) -> T:
        """Run a function in a transaction, with Python's own driver for a file: another one may not be installed."""
        if self.url.startswith("sqlite"):
            engine = sa.create_engine(self.url)
            try:
                with engine.begin() as connection:
                    return function(connection)
            finally:
                engine.dispose()
        return asyncio.run(self._run(function))

    async def _run(self, function: Callable[[sa.Connection], T]) -> T:
        engine = create_owner_engine(make_settings(self.url))
        try:
            async with engine.begin() as connection:
                return await connection.run_sync(function)
        finally:
            await engine.dispose()

    def execute(self, *statements: str) -> None:
        self.run(lambda connection: [connection.exec_driver_sql(statement) for statement in statements])

    def read(self, table: sa.Table) -> list[str]:
        rows = self.run(lambda connection: connection.execute(sa.select(table)).all())
        # A negative zero becomes zero in SQLite.
        return sorted(repr([value + 0.0 if isinstance(value, float) else value for value in row]) for row in rows)

    def count(self, table: str = "users") -> int:
        statement = sa.select(sa.func.count()).select_from(sa.table(table))
        return self.run(lambda connection: connection.execute(statement).scalar_one())

    def copy_from(self, source: "Example", metadata: MetaData = Base.metadata) -> list[CopiedTable]:
        options = Options(metadata=metadata)
        return asyncio.run(copy_database(make_settings(self.url), parse_url(source.url), options, lambda _line: None))


def add_things(connection: sa.Connection) -> None:
    """Insert rows that together contain all values; the parent of each row comes after it."""
    ids = [uuid4() for _ in range(max(map(len, VALUES.values())))]
    for number, each in enumerate(ids):
        values = {name: values[number % len(values)] for name, values in VALUES.items()}
        connection.execute(sa.insert(Thing).values(id=each, **values))
        connection.execute(sa.insert(Box).values(number=number + 1, thing_id=each))
    for number, (each, parent) in enumerate(pairwise(ids)):
        connection.execute(sa.update(Thing).values(parent_id=parent, box_id=number + 1).where(Thing.id == each))


def create_file(folder: Path) -> Example:
    """Create a database file at head without the service's tables, whose types another database may not have."""
    example = Example(f"sqlite:///{folder / uuid4().hex}.sqlite3")
    example.execute(
        "CREATE TABLE alembic_version (version_num VARCHAR(32))",
        f"INSERT INTO alembic_version VALUES ('{head_revision()}')",  # noqa: S608  # SQL of this test, without input from outside
    )
    return example


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Example]:
    with create_test_database(tmp_path) as url:
        migrate(url)
        yield Example(url)


@pytest.fixture
def target(live_url: str) -> Example:
    return Example(live_url)


def add_examples(source: Example, target: Example) -> None:
    """Create the tables of the examples in both databases, and fill those of the first one."""
    for each in (source, target):
        each.run(Base.metadata.create_all)
    source.run(add_things)


def copy(source: Example, target: Example, *arguments: str, **environment: str) -> Outcome:
    return manage(target.url, "db", "copy", *arguments, **{"SOURCE_DATABASE_URL": source.url, **environment})


def add_user(example: Example, email: str = "ada@example.com") -> None:
    example.execute(ADD_USER.format(id=uuid4().hex, email=email, at="2026-01-02 03:04:05.678901"))


@pytest.mark.parametrize("is_file", [False, True], ids=["same kind", "file"])
def test_values_of_every_type_are_copied_exactly(
    source: Example, target: Example, tmp_path: Path, is_file: bool
) -> None:
    source = create_file(tmp_path) if is_file else source
    add_examples(source, target)

    copied = target.copy_from(source)

    for table in (THINGS, BOXES):
        assert target.read(table) == source.read(table)
    assert {each.name: each.rows for each in copied} == {"example_things": 10, "example_boxes": 10}


def test_rows_that_are_copied_twice_have_the_same_checksums(source: Example, target: Example, tmp_path: Path) -> None:
    add_examples(source, target)
    first = target.copy_from(source)
    with create_test_database(tmp_path) as url:
        migrate(url)
        other = Example(url)
        other.run(Base.metadata.create_all)

        assert other.copy_from(target) == first
        assert other.read(THINGS) == source.read(THINGS)


def test_a_new_row_gets_the_next_number(source: Example, target: Example) -> None:
    add_examples(source, target)

    target.copy_from(source)

    added = target.run(lambda connection: connection.execute(sa.insert(Box).returning(Box.number)).scalar_one())
    assert added == 11


def test_an_operator_copies_a_database(source: Example, target: Example) -> None:
    add_user(source)
    add_user(source, "żółw@example.com")

    outcome = copy(source, target)

    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert re.search(r"(?m)^users: 2 rows, checksum [0-9a-f]{16}$", outcome.stdout)
    assert "Done: 2 rows in " in outcome.stdout
    assert target.read(USERS) == source.read(USERS)
    assert manage(target.url, "db", "check").returncode == 0


def assert_refused(source: Example, target: Example, reason: str, *arguments: str) -> None:
    rows = target.count()

    outcome = copy(source, target, *arguments)

    assert outcome.returncode == 1
    assert reason in outcome.stderr
    assert "Done" not in outcome.stdout
    assert target.count() == rows


def test_a_target_with_rows_is_refused(source: Example, target: Example) -> None:
    add_user(source)
    add_user(target, "present@example.com")

    assert_refused(source, target, "The target is not empty: users already has rows")


def test_rows_that_a_migration_has_inserted_are_replaced_on_request(source: Example, target: Example) -> None:
    add_user(source)
    add_user(target, "inserted@example.com")

    outcome = copy(source, target, "--replace", "users")

    assert outcome.returncode == 0
    assert target.read(USERS) == source.read(USERS)


def test_replaced_rows_return_if_the_copy_fails(source: Example, target: Example) -> None:
    for name in ("first@example.com", "second@example.com"):
        add_user(source, name)
    add_user(target, "inserted@example.com")
    target.execute("CREATE UNIQUE INDEX only_one_name ON users (name)")
    before = target.read(USERS)

    assert_refused(source, target, "the target refuses the row: ", "--replace", "users")

    assert target.read(USERS) == before


@pytest.mark.parametrize(
    ("side", "revision", "reason"),
    [
        ("source", "9999", "A newer release has migrated the source"),
        ("source", "0001", "python -m app db upgrade`, and copy again"),
        ("target", "0001", "run `db upgrade` first"),
    ],
)
def test_another_revision_is_refused(source: Example, target: Example, side: str, revision: str, reason: str) -> None:
    add_user(source)
    behind = {"source": source, "target": target}[side]
    behind.execute(f"UPDATE alembic_version SET version_num = '{revision}'")  # noqa: S608  # SQL of this test, without input from outside

    assert_refused(source, target, reason)


def test_a_target_without_a_schema_is_refused(source: Example, empty_url: str) -> None:
    outcome = copy(source, Example(empty_url))

    assert outcome.returncode == 1
    assert "yet" in outcome.stderr
    assert "run `db upgrade` first" in outcome.stderr


def test_a_database_of_another_program_is_refused(source: Example, target: Example) -> None:
    source.execute("DROP TABLE alembic_version", "CREATE TABLE example_strangers (id INTEGER)")

    assert_refused(source, target, "The source is not a database of this service")


def test_a_file_that_is_no_database_is_refused(target: Example, tmp_path: Path) -> None:
    (tmp_path / "page.sqlite3").write_text("<html>" * 1000)

    assert_refused(Example(f"sqlite:///{tmp_path / 'page.sqlite3'}"), target, "cannot be read: file is not a database")


@pytest.mark.parametrize("url", [unreachable_url(), "sqlite:////nowhere/at/all.sqlite3"])
def test_an_unreachable_source_is_refused_and_not_created(url: str, target: Example) -> None:
    assert_refused(Example(url), target, "cannot be read: ")


def test_an_unreachable_target_is_refused(source: Example) -> None:
    outcome = copy(source, Example(unreachable_url()))

    assert outcome.returncode == 1
    assert "does not exist yet" in outcome.stderr if IS_SQLITE else "connection failed" in outcome.stderr


def test_the_same_database_is_refused(target: Example, tmp_path: Path) -> None:
    same = target
    if IS_SQLITE:
        link = tmp_path / "link.sqlite3"
        link.symlink_to(target.url.removeprefix("sqlite:///"))
        same = Example(f"sqlite:///{link}")

    assert_refused(same, target, "The source and the target are the same database")


def test_an_unknown_table_with_rows_is_refused_unless_it_is_skipped(source: Example, target: Example) -> None:
    add_user(source)
    source.execute("CREATE TABLE example_strangers (id INTEGER)", "CREATE TABLE example_empty (id INTEGER)")
    source.execute("INSERT INTO example_strangers VALUES (1)")

    assert_refused(source, target, "whose rows would be lost: example_strangers. Add a model")
    assert_refused(source, target, "that the service does not know: not users", "--skip", "users")

    assert copy(source, target, "--skip", "example_strangers").returncode == 0
    assert target.count() == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("ALTER TABLE users ADD COLUMN nickname VARCHAR(10)", "whose values would be lost: nickname"),
        ("ALTER TABLE users DROP COLUMN name", "The table users in the source lacks name"),
        ("DROP TABLE audit_events", "The source lacks these tables: audit_events"),
    ],
)
def test_another_schema_in_the_source_is_refused(source: Example, target: Example, change: str, reason: str) -> None:
    source.execute(change)

    assert_refused(source, target, reason)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DROP TABLE audit_events", "The target lacks these tables: audit_events"),
        ("ALTER TABLE users DROP COLUMN name", "The table users in the target lacks name"),
    ],
)
def test_another_schema_in_the_target_is_refused(source: Example, target: Example, change: str, reason: str) -> None:
    target.execute(change)

    assert_refused(source, target, reason)


def test_values_that_a_trigger_changes_are_found(source: Example, target: Example) -> None:
    add_user(source)
    change = "BEGIN UPDATE users SET name = email; {} END"
    if IS_SQLITE:
        target.execute(f"CREATE TRIGGER meddle AFTER INSERT ON users {change.format('')}")
    else:
        target.execute(
            f"CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS '{change.format('RETURN NULL;')}'",
            "CREATE TRIGGER meddle AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION meddle()",
        )

    assert_refused(source, target, "The table users differs after the copy: the source has 1 rows")


def test_a_row_that_the_target_refuses_is_named(source: Example, target: Example) -> None:
    for number in range(3):
        add_user(source, f"{number}@example.com")
    target.execute("CREATE UNIQUE INDEX only_one_name ON users (name)")

    assert_refused(source, target, "the target refuses the row: ")


def test_other_programs_cannot_write_to_the_target_during_the_copy(source: Example, target: Example) -> None:
    add_user(source)
    problems = []

    def write() -> None:
        try:
            target.execute(
                *([] if IS_SQLITE else ["SET lock_timeout = '10ms'"]), ADD_USER.format(id=uuid4().hex, **LATER)
            )
        except sa.exc.OperationalError as error:
            problems.append(str(error.orig))

    def report(_line: str) -> None:
        # In another thread, because this one runs an event loop.
        with ThreadPoolExecutor() as threads:
            threads.submit(write).result()

    asyncio.run(copy_database(make_settings(target.url), parse_url(source.url), Options(), report))

    assert problems != []
    assert all("lock" in problem for problem in problems)
    assert target.read(USERS) == source.read(USERS)


def test_audit_events_are_copied_and_stay_protected(source: Example, target: Example) -> None:
    now = datetime.now(UTC)
    for age in (timedelta(), timedelta(days=400)):
        source.execute(ADD_EVENT.format(id=uuid4().hex, at=f"{now - age:%Y-%m-%d %H:%M:%S.%f}"))

    assert copy(source, target).returncode == 0

    assert target.count("audit_events") == 2
    with pytest.raises(sa.exc.DBAPIError, match="audit events never change"):
        target.execute("UPDATE audit_events SET event = 'another'")
    with pytest.raises(sa.exc.DBAPIError, match="audit events stay for a day"):
        target.execute("DELETE FROM audit_events")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_copy_leaves_the_target_empty(source: Example, target: Example, number: signal.Signals) -> None:
    adding = [ADD_USER.format(id=uuid4().hex, email=each, at="2026-01-02 03:04:05") for each in range(SLOW_ROWS)]
    source.execute(*adding)
    environment = {**os.environ, **ENVIRONMENT, "DATABASE_URL": target.url, "SOURCE_DATABASE_URL": source.url}
    command = [sys.executable, "-c", SLOW_COPY]

    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe) as process:  # noqa: S603  # a command of this test, without input from outside
        assert process.stdout is not None
        started = [line for _, line in zip(range(4), process.stdout, strict=False)]
        process.send_signal(number)
        _, errors = process.communicate()

    assert started[-1] == b"users: 3 rows ...\n", errors
    assert process.returncode != 0
    assert b"Traceback" not in errors
    assert target.count() == 0
    assert copy(source, target).returncode == 0
    assert target.count() == SLOW_ROWS


def test_the_source_is_only_read(source: Example, target: Example) -> None:
    add_user(source)
    before = source.read(USERS)
    content = Path(source.url.removeprefix("sqlite:///")).read_bytes() if source.url.startswith("sqlite") else b""

    assert copy(source, target).returncode == 0

    assert source.read(USERS) == before
    assert not content or Path(source.url.removeprefix("sqlite:///")).read_bytes() == content


def test_a_password_is_neither_accepted_as_an_argument_nor_printed(target: Example, tmp_path: Path) -> None:
    url = "postgresql://ada:hunter2@127.0.0.1:1/name"
    (tmp_path / "password").write_text("hunter2\n")

    visible = manage(target.url, "db", "copy", url)
    hidden = [
        manage(target.url, "db", "copy", SOURCE_DATABASE_URL=url),
        manage(
            *(target.url, "db", "copy", url.replace(":hunter2", "")),
            *("--source-password-file", str(tmp_path / "password")),
        ),
    ]

    assert visible.returncode == 2
    assert "every user of this machine can read" in " ".join(visible.stderr.replace("│", " ").split())
    for outcome in (visible, *hidden):
        assert "hunter2" not in outcome.stdout + outcome.stderr
    assert [outcome.returncode for outcome in hidden] == [1, 1]


@pytest.mark.parametrize("url", ["mysql://host/name", "nonsense", "sqlite://"])
def test_other_addresses_are_refused(target: Example, url: str) -> None:
    outcome = manage(target.url, "db", "copy", url)

    assert outcome.returncode == 2
    assert "SOURCE must" in " ".join(outcome.stderr.split())


def test_a_missing_driver_is_explained(target: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.db.copy.source.find_spec", lambda _name: None)

    outcome = manage(target.url, "db", "copy", "postgresql://127.0.0.1:1/name")

    assert outcome.returncode == 1
    assert "uv run --with 'psycopg[binary]' python -m app db copy" in outcome.stderr


FAULTS = {
    "title": ("'" + "x" * 21 + "'", "title has 21 characters, but the column holds 20"),
    "small": ("32768", "small does not fit into an integer of 16 bits"),
    "count": ("2147483648", "count does not fit into an integer of 32 bits"),
    "large": ("'many'", "large is not an integer"),
    "ratio": ("'half'", "ratio is not a number"),
    "price": ("0.005", "price has more than 2 digits after the decimal point"),
    "is_new": ("7", "is_new is not a boolean"),
    "color": ("'green'", "color is none of red, blue"),
    "day": ("'yesterday'", "day is not a valid Date"),
    "moment": ("'now'", "moment is not a valid DateTime"),
    "content": ("'text'", "content is not binary data"),
    "details": ("'{'", "details is not a valid JSON"),
    "body": ("CAST(X'ff' AS TEXT)", "body is not valid UTF-8"),
}


def test_a_faulty_value_is_refused_with_its_row(target: Example, tmp_path: Path) -> None:
    target.run(Base.metadata.create_all)
    for column, (value, reason) in FAULTS.items():
        source = create_file(tmp_path)
        source.run(Base.metadata.create_all)
        source.run(add_things)
        # A file accepts any value.
        source.execute(f"UPDATE example_things SET {column} = {value} WHERE box_id = 3")  # noqa: S608  # SQL of this test, without input from outside
        ((key,),) = source.run(lambda c: c.exec_driver_sql("SELECT id FROM example_things WHERE box_id = 3").all())

        with pytest.raises(CopyError, match=re.escape(f"example_things, id={key}: {reason}.")):
            target.copy_from(source)

        assert target.count("example_things") == target.count("example_boxes") == 0


def test_a_file_in_a_folder_without_write_access_is_copied(
    target: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = create_file(tmp_path)
    add_examples(source, target)
    with closing(sqlite3.connect(source.url.removeprefix("sqlite:///"))) as setup:
        setup.execute("PRAGMA journal_mode = WAL")
    # The tests may run as root, which may write to every folder.
    monkeypatch.setattr("app.core.db.copy.source.os.access", lambda _path, _mode: False)
    before = sorted(tmp_path.glob(f"{Path(source.url).name}*"))

    with open_source(parse_url(source.url), make_settings(target.url)) as connection:
        connection.execute(sa.select(THINGS)).all()
        during = sorted(tmp_path.glob(f"{Path(source.url).name}*"))
    target.copy_from(source)

    assert during == before
    assert target.read(THINGS) == source.read(THINGS)


def test_a_missing_parent_is_refused(target: Example, tmp_path: Path) -> None:
    source = create_file(tmp_path)
    add_examples(source, target)
    source.execute("DELETE FROM example_boxes WHERE number = 5")

    with pytest.raises((CopyError, sa.exc.IntegrityError), match="example_boxes"):
        target.copy_from(source)

    assert target.count("example_things") == 0
