"""Copies all rows from one database to another, also to one of another kind, in one verified transaction."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, Connection, Insert, MetaData, Row, Table, delete, select
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.schema import sort_tables_and_constraints

from app.core.config.settings import Settings
from app.core.db.copy import checks
from app.core.db.copy.constraints import prepared_target, require_foreign_keys
from app.core.db.copy.errors import CopyError
from app.core.db.copy.source import open_source
from app.core.db.copy.values import Checksum, FaultyValueError, RowReader, insert_statement
from app.core.db.migrations import locked_connection
from app.core.db.models import Base
from app.core.errors import first_line

# A few hundred rows fit into memory even if they contain long texts.
BATCH_ROWS = 200
REPORT_ROWS = 100_000

Report = Callable[[str], None]


@dataclass(frozen=True)
class CopiedTable:
    name: str
    rows: int
    checksum: str


@dataclass(frozen=True)
class Options:
    """The tables to copy, and names of tables.

    `ignored` are those of development, `skipped` those that the service does not know, and `replaced` those whose rows
    in the target are deleted first.
    """

    metadata: MetaData = Base.metadata
    ignored: Collection[str] = ()
    skipped: Collection[str] = ()
    replaced: Collection[str] = ()


async def copy_database(settings: Settings, source: URL, options: Options, report: Report) -> list[CopiedTable]:
    """Copy all rows of the service's tables to the configured database, and return what was copied.

    Raise CopyError, with the target unchanged, if the databases do not fit or a value cannot be copied exactly.
    """
    checks.check_files(source, settings.owner_url)
    with open_source(source, settings) as reading:
        async with locked_connection(settings) as connection:
            return await connection.run_sync(_copy, reading, options, report)


def _copy(target: Connection, source: Connection, options: Options, report: Report) -> list[CopiedTable]:
    tables = _sort_tables(options.metadata)
    with target.begin():
        checks.require_revisions(source, target)
        checks.refuse_same_server(source, target)
        checks.require_tables(source, target, tables, options.ignored, options.skipped)
        with prepared_target(target, tables):
            _empty(target, tables, options.replaced)
            checks.require_empty(target, options.ignored)
            copied = [_copy_table(source, target, table, report) for table in tables]
        require_foreign_keys(target)
        report("Verifying ...")
        for table, expected in zip(tables, copied, strict=True):
            _verify(target, table, expected)
    return copied


def _sort_tables(metadata: MetaData) -> list[Table]:
    """Return all tables, each after those that it refers to, except in cycles of foreign keys."""
    found = sort_tables_and_constraints(metadata.tables.values())  # type: ignore[no-untyped-call]  # SQLAlchemy declares no types for this public function
    return [table for table, _ in found if table is not None]


def _empty(target: Connection, tables: Sequence[Table], names: Collection[str]) -> None:
    if unknown := sorted(set(names) - {table.name for table in tables}):
        raise CopyError(f"--replace is for tables of the service: not {', '.join(unknown)}.")
    for table in reversed(tables):
        if table.name in names:
            target.execute(delete(table))


def _copy_table(source: Connection, target: Connection, table: Table, report: Report) -> CopiedTable:
    reader = RowReader(table, source.dialect, target.dialect)
    statement = insert_statement(table)
    checksum = Checksum()
    checks.require_readable_times(source, table)
    for rows in _read(source, table, reader):
        values = []
        for row in rows:
            try:
                converted, encoded = reader.read(row)
            except FaultyValueError as error:
                raise CopyError(f"{table.name}, {checks.write_key(table, row)}: {error}.") from error
            checksum.add(encoded)
            values.append(converted)
        _insert(target, table, statement, values)
        if checksum.rows % REPORT_ROWS < len(rows) and checksum.rows >= REPORT_ROWS:
            report(f"{table.name}: {checksum.rows:,} rows ...")
    return CopiedTable(table.name, checksum.rows, str(checksum))


def _read(connection: Connection, table: Table, reader: RowReader) -> Iterator[Sequence[Row[Any]]]:
    statement = select(*reader.selected).select_from(table)
    try:
        with connection.execute(statement, execution_options={"yield_per": BATCH_ROWS}) as result:
            yield from result.partitions()
    except (SQLAlchemyError, ValueError, LookupError, TypeError) as error:
        raise CopyError(f"The table {table.name} cannot be read: {first_line(error)}") from error


def _insert(target: Connection, table: Table, statement: Insert, values: list[dict[str, Any]]) -> None:
    try:
        with target.begin_nested():
            target.execute(statement, values)
    except (OperationalError, InterfaceError):
        # The connection, or the server's disk, rather than a row.
        raise
    except (SQLAlchemyError, ValueError, OverflowError):
        _raise_for_first_refused(target, table, statement, values)
        raise


def _raise_for_first_refused(target: Connection, table: Table, statement: Insert, values: list[dict[str, Any]]) -> None:
    """Insert the rows one by one, to name the one that the database refuses."""
    names = [column.name for column in table.primary_key.columns]
    with target.begin_nested():
        for row in values:
            try:
                target.execute(statement, row)
            except (SQLAlchemyError, ValueError, OverflowError) as error:
                key = ", ".join(f"{name}={row[name]}" for name in names) or "a row without a primary key"
                raise CopyError(f"{table.name}, {key}: the target refuses the row: {first_line(error)}") from error


def _verify(target: Connection, table: Table, expected: CopiedTable) -> None:
    """Read the table back; raise CopyError unless it has the rows of the source."""
    reader = RowReader(table, target.dialect, target.dialect)
    checksum = Checksum()
    for rows in _read(target, table, reader):
        for row in rows:
            try:
                checksum.add(reader.read(row)[1])
            except FaultyValueError as error:
                raise CopyError(f"{table.name}, {checks.write_key(table, row)}: after the copy, {error}.") from error
    if (checksum.rows, str(checksum)) != (expected.rows, expected.checksum):
        raise CopyError(
            f"The table {table.name} differs after the copy: the source has {expected.rows:,} rows with the checksum"
            f" {expected.checksum}, the target {checksum.rows:,} rows with {checksum}. A trigger or a type of the"
            " target has changed the values."
        )
