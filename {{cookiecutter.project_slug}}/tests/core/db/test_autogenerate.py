"""Migrations that Alembic generates: each passes ruff, and can be applied, reverted and applied again."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import pytest
from alembic.operations.ops import DowngradeOps, DropTableOp, MigrationScript, UpgradeOps
from alembic.util import CommandError
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Date,
    Double,
    Enum,
    Executable,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    func,
    insert,
    literal_column,
    select,
    text,
    type_coerce,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.accounts.models import User, UserSession
from app.core.config.settings import Settings
from app.core.db import autogenerate, migrations
from app.core.db.autogenerate import next_revision
from app.core.db.engine import create_owner_engine
from app.core.db.models import Base, FixedPoint, TimestampMixin, UTCDateTime, utc_now
from app.core.db.query import Command, Query, columns
from app.core.db.revisions import MigrationsError, head_revision, read_revisions
from app.core.db.session import open_database
from app.core.project import ROOT
from tests.support.databases import add_migration, make_settings

NOW = datetime(2026, 5, 4, 3, 2, 1, 123456, UTC)
USER_ID = UUID("0195f4a2-0000-7000-8000-000000000001")
MESSAGES = [
    'It\'s "quoted" """ $HOME `date` $(date) $(shell date) %s %(rev)s ${name}',
    "ends in \\",
    'ends in "',
    "Gr\u00fc\u00dfe \u2013 \u2018so\u2019",
    "\U0001f389",
    "two\nlines.",
    "word " * 60,
    "w" * 200,
    "\x23% if",
]
# A required column with a default, and the value that a migration gives to existing rows.
DEFAULTS: list[tuple[Column[Any], object]] = [
    (Column("text", String(20), default="it's 100% \\ :x 'y'"), "it's 100% \\ :x 'y'"),
    (Column("empty", Text, default=""), ""),
    (Column("number", Integer, default=-7), -7),
    (Column("no", Boolean, default=False), False),
    (Column("yes", Boolean, default=True), True),
    (Column("ratio", Double, default=0.1), 0.1),
    (Column("price", FixedPoint(), default=Decimal("1.5")), Decimal("1.50")),
    (Column("day", Date, default=date(2026, 2, 3)), date(2026, 2, 3)),
    (Column("time", UTCDateTime, default=NOW), NOW),
    (Column("key", Uuid, default=USER_ID), USER_ID),
    (Column("object", JSON, default=dict), {}),
    (Column("array", JSON, default=["a'b"]), ["a'b"]),
    (Column("of_the_database", String(20), server_default="x"), "x"),
]


class ScratchBase(DeclarativeBase):
    type_annotation_map = Base.type_annotation_map


class Priority(StrEnum):
    LOW = "low-priority"
    HIGH = "high-priority"


class Sample(TimestampMixin, ScratchBase):
    __tablename__ = "samples"

    owner_id: Mapped[UUID] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    notes: Mapped[str] = mapped_column(Text)
    amount: Mapped[int]
    is_open: Mapped[bool]
    ratio: Mapped[float]
    price: Mapped[Decimal]
    latitude: Mapped[Decimal] = mapped_column(FixedPoint(9, 6))
    due_on: Mapped[date]
    seen_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]
    priority: Mapped[Priority]
    previous: Mapped[Priority | None]
    details: Mapped[dict[str, Any]] = mapped_column(JSON)


class SampleRecord(NamedTuple):
    owner_id: UUID
    code: str
    notes: str
    amount: int
    is_open: bool
    ratio: float
    price: Decimal
    latitude: Decimal
    due_on: date
    seen_at: datetime
    closed_at: datetime | None
    priority: Priority
    previous: Priority | None
    details: dict[str, Any]


SAMPLES = Sample.metadata.tables["samples"]
NEXT = next_revision(file.name.partition("_")[0] for file in (ROOT / "migrations" / "versions").glob("*.py"))
ORPHAN = "UPDATE sessions SET user_id = '00000000000000000000000000000000'"


@dataclass
class Project:
    """A copy of the project's migrations, and models that a test may change."""

    versions: Path
    settings: Settings
    metadata: MetaData
    patch: pytest.MonkeyPatch

    def use(self, metadata: MetaData) -> None:
        """Replace the models."""
        self.metadata = metadata
        self.patch.setattr(Base, "metadata", metadata)

    @property
    def files(self) -> set[Path]:
        return set(self.versions.glob("*.py"))

    async def write(self, message: str = "change the models") -> Path:
        """Generate a migration, check its file with ruff, and return the file."""
        before = self.files
        await migrations.write_migration(self.settings, message)
        read_revisions.cache_clear()
        (file,) = self.files - before
        assert_clean(file)
        assert not re.search(r"^(import|from) app\b", file.read_text(encoding="utf-8"), re.MULTILINE)
        return file

    async def upgrade(self) -> None:
        await migrations.upgrade(self.settings)

    async def downgrade(self) -> None:
        await migrations.downgrade(self.settings, "-1")

    async def go_up_down_up(self) -> None:
        await self.upgrade()
        await self.downgrade()
        await self.upgrade()
        await migrations.check(self.settings)

    async def execute(self, statement: Executable, **values: object) -> None:
        async with self._begin() as session:
            await session.execute(statement, values)

    async def fetch(self, statement: Executable) -> list[tuple[Any, ...]]:
        async with self._begin() as session:
            return [tuple(row) for row in await session.execute(statement)]

    @asynccontextmanager
    async def _begin(self) -> AsyncIterator[AsyncSession]:
        engine = create_owner_engine(self.settings)
        try:
            async with AsyncSession(engine) as session, session.begin():
                yield session
        finally:
            await engine.dispose()

    async def add_rows(self) -> None:
        """Add a user, and a session that refers to it."""
        await self.execute(
            insert(User), id=USER_ID, email="ada@example.com", password_hash="", created_at=NOW, updated_at=NOW
        )
        await self.add_session()

    async def add_session(self) -> None:
        times = {"last_used_at": NOW, "expires_at": NOW, "created_at": NOW}
        await self.execute(insert(UserSession), id=uuid4(), user_id=USER_ID, scope="account", device="", **times)


def assert_clean(file: Path) -> None:
    for command in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, "--no-cache", file], check=True)  # noqa: S603  # fixed


def copy_metadata(metadata: MetaData) -> MetaData:
    copied = MetaData(naming_convention=metadata.naming_convention)
    for table in metadata.tables.values():
        table.to_metadata(copied)
    return copied


@pytest.fixture
def project(migrations_folder: Path, empty_url: str, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = Project(migrations_folder / "versions", make_settings(empty_url), Base.metadata, monkeypatch)
    project.use(copy_metadata(Base.metadata))
    return project


async def test_a_field_of_every_kind_keeps_its_value(project: Project) -> None:
    SAMPLES.to_metadata(project.metadata)
    file = await project.write("add samples")
    await project.go_up_down_up()
    await project.add_rows()
    record = SampleRecord(
        owner_id=USER_ID,
        code="a",
        notes='it\'s \\ "quoted" %s \u00fc',
        amount=-3,
        is_open=True,
        ratio=0.1,
        price=Decimal("9999999999.99"),
        latitude=Decimal("-12.345678"),
        due_on=date(2026, 2, 28),
        seen_at=NOW,
        closed_at=None,
        priority=Priority.HIGH,
        previous=None,
        details={"a": [1, None, "\u00fc"]},
    )

    async with open_database(project.settings) as database:
        async with database.write() as session:
            await session.run(Command(insert(Sample)), **record._asdict())
        async with database.read() as session:
            found = await session.fetch_one(Query(select(*columns(SampleRecord, Sample)), SampleRecord))

    assert found == record
    assert [type(value) for value in found] == [type(value) for value in record]
    assert await project.fetch(text("SELECT priority FROM samples")) == [("high-priority",)]
    assert '"priority", sa.String(length=50), nullable=False' in file.read_text(encoding="utf-8")


async def test_enum_gets_new_member_without_migration_and_refuses_unknown_values(project: Project) -> None:
    SAMPLES.to_metadata(project.metadata)
    await project.write("add samples")
    await project.upgrade()
    await project.add_rows()
    priority = project.metadata.tables["samples"].columns["priority"]
    priority.type = Enum(*Priority, "new", native_enum=False, length=50)
    await migrations.check(project.settings)
    unknown = type_coerce(literal_column("'new'"), SAMPLES.columns["priority"].type)

    with pytest.raises(LookupError, match="'new' is not among the defined enum values"):
        await project.fetch(select(unknown))
    with pytest.raises(StatementError, match="'new' is not among the defined enum values"):
        await project.fetch(select(SAMPLES).where(SAMPLES.c.priority == "new"))


async def test_decimals_add_up_exactly_and_are_never_rounded(project: Project) -> None:
    prices = Table("prices", project.metadata, Column("id", Integer, primary_key=True), Column("price", FixedPoint()))
    await project.write("add prices")
    await project.upgrade()
    for price in ("0.10", "0.20", "10"):
        await project.execute(insert(prices), price=Decimal(price))

    [(total,)] = await project.fetch(select(func.sum(prices.c.price)))
    ordered = await project.fetch(select(prices.c.price).order_by(prices.c.price.desc()))

    assert str(total) == "10.30"
    assert [str(price) for (price,) in ordered] == ["10.00", "0.20", "0.10"]
    for wrong in map(Decimal, ("1.005", "10000000000", "1e30", "NaN", "Infinity")):
        with pytest.raises(StatementError, match=re.escape(f"{wrong} does not fit into 12 digits, 2 of them decimals")):
            await project.execute(insert(prices), price=wrong)


@pytest.mark.parametrize("message", MESSAGES)
async def test_any_message_becomes_a_docstring(project: Project, message: str) -> None:
    file = await project.write(message)

    written = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    assert written.split() in (message.split(), f"{message.strip()}.".split())
    assert file.name.startswith(f"{NEXT}_")


async def test_the_file_is_named_after_the_message(project: Project) -> None:
    file = await project.write("Add notes, and more!")

    assert file.name == f"{NEXT}_add_notes_and_more.py"


def test_next_revision_follows_highest_number() -> None:
    assert next_revision(["1002", "1010", "b7d1"]) == "1011"


def test_numbers_up_to_1000_belong_to_the_template() -> None:
    assert next_revision([]) == "1001"
    assert next_revision(["0002", "0010"]) == "1001"


async def test_required_columns_are_added_to_rows_with_their_defaults(project: Project) -> None:
    await project.upgrade()
    await project.add_rows()
    sessions = project.metadata.tables["sessions"]
    priority: Column[Any] = Column("priority", SAMPLES.c.priority.type, default=Priority.LOW)
    for column, _value in (added := [*DEFAULTS, (priority, Priority.LOW)]):
        column.nullable = False
        sessions.append_column(column._copy())

    await project.write()
    await project.go_up_down_up()
    # Insert a row as the previous release does, which does not know the new columns.
    await project.add_session()

    rows = await project.fetch(select(*(sessions.columns[column.name] for column, _value in added)))
    assert rows == [tuple(value for _column, value in added)] * 2
    assert sessions.c.text.server_default is None


@pytest.mark.parametrize(
    "column",
    [
        Column("added", Integer, nullable=False),
        Column("added", UTCDateTime, default=utc_now, nullable=False),
        Column("added", LargeBinary, default=b"x", nullable=False),
        Column("added", Uuid, ForeignKey("users.id"), nullable=False),
    ],
    ids=str,
)
async def test_a_required_column_without_a_constant_default_writes_no_migration(
    project: Project, column: Column[Any]
) -> None:
    project.metadata.tables["sessions"].append_column(column._copy())
    before = project.files

    with pytest.raises(CommandError, match=r"^sessions\.added is required.* constant default"):
        await project.write()

    assert project.files == before


async def test_dropped_required_column_is_restored_by_downgrade(project: Project) -> None:
    await project.upgrade()
    await project.add_rows()
    sessions = project.metadata.tables["sessions"]
    kept = [column._copy() for column in sessions.columns if column.name != "device"]
    project.metadata.remove(sessions)
    Table("sessions", project.metadata, *kept)

    await project.write()
    await project.go_up_down_up()

    assert await project.fetch(text("SELECT count(*) FROM sessions")) == [(1,)]


async def test_a_changed_table_keeps_the_rows_that_refer_to_it(project: Project) -> None:
    await project.upgrade()
    await project.add_rows()
    project.metadata.tables["users"].columns["name"].nullable = True

    await project.write()
    await project.go_up_down_up()

    assert await project.fetch(text("SELECT count(*) FROM sessions")) == [(1,)]
    assert await project.fetch(text("SELECT email FROM users")) == [("ada@example.com",)]


async def test_migration_that_orphans_rows_is_rolled_back(project: Project) -> None:
    await project.upgrade()
    await project.add_rows()
    file = await project.write()
    written = file.read_text(encoding="utf-8").replace("    pass", f'    op.execute("{ORPHAN}")', 1)
    file.write_text(f"from alembic import op\n{written}", encoding="utf-8")

    with pytest.raises((CommandError, IntegrityError), match="sessions"):
        await project.upgrade()

    assert await project.fetch(select(User.id)) == [(USER_ID,)]


def add_family(metadata: MetaData) -> None:
    """Add tables whose foreign keys require another order than the alphabetical one."""
    family = {"m_root": [], "z_child": ["m_root"], "a_child": ["m_root"], "q_grandchild": ["a_child", "z_child"]}
    for name, parents in family.items():
        Table(
            name,
            metadata,
            Column("id", Uuid, primary_key=True),
            Column("owner_id", ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
            Column("previous_id", ForeignKey(f"{name}.id")),
            Column("title", String(20), nullable=False, unique=True),
            Column("created_at", UTCDateTime, nullable=False),
            *(Column(f"{parent}_id", ForeignKey(f"{parent}.id", ondelete="CASCADE")) for parent in parents),
            Index(None, "owner_id", "created_at"),
        )
    metadata.tables["sessions"].append_column(Column("root_id", ForeignKey("m_root.id")))


async def test_tables_of_removed_feature_are_dropped_and_restored_by_downgrade(project: Project) -> None:
    before = copy_metadata(project.metadata)
    add_family(project.metadata)
    await project.write("add a family")
    await project.upgrade()
    await project.add_rows()
    root, child = project.metadata.tables["m_root"], project.metadata.tables["z_child"]
    row = {"owner_id": USER_ID, "title": "a", "created_at": NOW}
    root_id = uuid4()
    await project.execute(insert(root), id=root_id, **row)
    await project.execute(insert(child), id=uuid4(), m_root_id=root_id, **row)
    await project.execute(update(project.metadata.tables["sessions"]), root_id=root_id)
    followers = Table("followers", project.metadata, Column("id", Uuid, primary_key=True))
    await project.write("add what follows")
    await project.upgrade()
    with_family = project.metadata

    followers.to_metadata(before)
    project.use(before)
    await project.write("remove the family")
    await project.upgrade()
    await migrations.check(project.settings)
    assert await project.fetch(text("SELECT count(*) FROM users")) == [(1,)]
    await project.downgrade()
    project.use(with_family)
    # After the last migration's file is deleted, the check compares the restored tables with the models, including
    # indexes and foreign keys.
    with pytest.raises(CommandError, match="not up to date"):
        await migrations.check(project.settings)
    (project.versions / max(file.name for file in project.files)).unlink()
    read_revisions.cache_clear()
    await migrations.check(project.settings)


async def test_two_migrations_with_one_number_are_an_error(project: Project) -> None:
    await project.upgrade()
    file = await project.write("mine")
    shutil.copy(file, file.with_name(file.name.replace("mine", "yours")))
    read_revisions.cache_clear()

    for attempt in (project.upgrade, project.downgrade, project.write, partial(migrations.check, project.settings)):
        with pytest.raises(MigrationsError, match=f"Revision {NEXT} is present more than once"):
            await attempt()


async def test_two_migrations_with_the_same_predecessor_are_refused(project: Project) -> None:
    for revision in ("9998", "9999"):
        add_migration(project.versions.parent, revision, head_revision())
    read_revisions.cache_clear()

    with pytest.raises(
        MigrationsError, match=r"no migration follows 9998 and 9999\. .*: python -m app db reparent REVISION"
    ):
        await project.upgrade()


async def test_migration_with_missing_predecessor_is_refused(project: Project) -> None:
    add_migration(project.versions.parent, "9999", "8888")
    read_revisions.cache_clear()

    with pytest.raises(MigrationsError, match=r"8888 .*is not present"):
        await project.upgrade()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("message", MESSAGES)
def test_make_migrate_passes_the_message_on_as_it_is(tmp_path: Path, message: str) -> None:
    message = f"{message} $(shell touch {tmp_path}/interpreted)"

    result = make_migrate(tmp_path, f"m={message}")

    assert result.returncode == 0, result.stderr
    heard = json.loads((tmp_path / "heard").read_text(encoding="utf-8"))
    assert heard[-5:] == ["app", "db", "revision", "--", message]
    assert not (tmp_path / "interpreted").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("arguments", [[], ["m="]])
def test_make_migrate_needs_a_message(tmp_path: Path, arguments: list[str]) -> None:
    result = make_migrate(tmp_path, *arguments)

    assert result.returncode == 2
    assert 'Summarize the change: make migrate m="add a column"' in result.stderr
    assert not (tmp_path / "heard").exists()


def make_migrate(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `make migrate` with a program in place of Python that records its arguments."""
    program = folder / "python"
    note = f"import json, sys; open({str(folder / 'heard')!r}, 'w').write(json.dumps(sys.argv))"
    python = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(note)}"
    program.write_text(f'#!/bin/sh\n{python} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    command = ["make", "--old-file=install", "--old-file=.env", "migrate", f"PYTHON={program}", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "m"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603  # a command of this test, without input from outside


def test_dropping_tables_that_refer_to_each_other_is_refused() -> None:
    metadata = MetaData()
    for name, other in (("hens", "eggs"), ("eggs", "hens")):
        Table(name, metadata, Column("id", Integer, primary_key=True), Column("other", ForeignKey(f"{other}.id")))
    upgrade = UpgradeOps([DropTableOp.from_table(table) for table in metadata.tables.values()])

    with pytest.raises(CommandError, match="eggs, hens refer to each other: drop their foreign keys"):
        autogenerate.complete(MigrationScript("0001", upgrade, DowngradeOps([])), [], sqlite.dialect())
