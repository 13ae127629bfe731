"""Checks before a copy: two databases, of the same release, of which the target is empty."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Row,
    Table,
    TableClause,
    inspect,
    literal_column,
    select,
    text,
)

from app.core.db.copy.errors import CopyError
from app.core.db.copy.source import PACKAGES
from app.core.db.migrations import current_revision
from app.core.db.models import UTCDateTime
from app.core.db.revisions import head_revision, read_revisions

VERSION_TABLE = "alembic_version"
# A database may be shared: the service owns the tables in the schema of alembic_version that have the owner of
# alembic_version. Partitions are read through their table, and an extension fills its own tables.
OWN_TABLES = text("""
    SELECT relname FROM pg_class
    WHERE relkind IN ('r', 'p') AND NOT relispartition AND (relnamespace, relowner) = (
        SELECT relnamespace, relowner FROM pg_class WHERE oid = 'alembic_version'::regclass
    ) AND NOT EXISTS (
        SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e'
    )
""")
# Texts, because Python has no year 10000.
EARLIEST: ColumnElement[Any] = literal_column("'0001-01-01'")
LATEST: ColumnElement[Any] = literal_column("'10000-01-01'")
# Equal for two connections only if both see the same table.
IDENTITY = text("""
    SELECT pg_postmaster_start_time(), current_database(), 'alembic_version'::regclass::oid
""")


def check_files(source: URL, target: URL) -> None:
    """Raise CopyError if the target is a missing file, which opening it would create, or the file of the source."""
    if target.get_backend_name() != "sqlite":
        return
    file = Path(target.database or "")
    if not file.exists():
        raise CopyError("The target does not exist yet: run `db upgrade` first.")
    if (
        source.get_backend_name() == "sqlite"
        and (other := Path(source.database or "")).exists()
        and file.samefile(other)
    ):
        raise _same_database()


def refuse_same_server(source: Connection, target: Connection) -> None:
    if source.dialect.name == target.dialect.name == "postgresql":
        identities = [tuple(connection.execute(IDENTITY).one()) for connection in (source, target)]
        if identities[0] == identities[1]:
            raise _same_database()


def _same_database() -> CopyError:
    return CopyError(
        "The source and the target are the same database: SOURCE must be the address of the old one, and the settings"
        " DATABASE_* that of the new one."
    )


def require_revisions(source: Connection, target: Connection) -> None:
    """Raise CopyError unless the schema of both databases is at the head of this release."""
    head = head_revision()
    found = current_revision(source)
    if found is None:
        raise CopyError("The source is not a database of this service: it has no applied migration. Correct SOURCE.")
    if read_revisions().is_ahead(found):
        raise CopyError(f"A newer release has migrated the source to {found}: copy with that release.")
    if found != head:
        raise CopyError(
            f"The schema of the source is at revision {found}, but this release needs {head}. Set DATABASE_URL to the"
            f" source, run `uv run --with {PACKAGES[source.dialect.name]} python -m app db upgrade`, and copy again."
        )
    found = current_revision(target)
    if found != head:
        state = f"The schema of the target is at revision {found}" if found else "The target has no schema yet"
        raise CopyError(f"{state}, but this release needs {head}: run `db upgrade` first.")


def require_tables(
    source: Connection,
    target: Connection,
    tables: Sequence[Table],
    ignored: Collection[str],
    skipped: Collection[str],
) -> None:
    """Raise CopyError if the source has data that the target cannot hold, or if one of them lacks tables or columns."""
    known = {table.name for table in tables}
    others = list_tables(source) - known - set(ignored) - {VERSION_TABLE}
    if wrong := sorted(set(skipped) - others):
        raise CopyError(f"--skip is for tables of the source that the service does not know: not {', '.join(wrong)}.")
    if filled := [name for name in sorted(others - set(skipped)) if _has_rows(source, name)]:
        raise CopyError(
            f"The service has no model for these tables of the source, whose rows would be lost: {', '.join(filled)}."
            f" Add a model, or leave a table out with --skip, such as --skip {filled[0]}."
        )
    for side, connection in {"source": source, "target": target}.items():
        if missing := sorted(known - list_tables(connection)):
            raise CopyError(f"The {side} lacks these tables: {', '.join(missing)}. Run `db check`.")
    _require_columns(source, target, tables)


def _require_columns(source: Connection, target: Connection, tables: Sequence[Table]) -> None:
    sides = {"source": inspect(source), "target": inspect(target)}
    for table in tables:
        known = {column.name for column in table.columns}
        found = {side: {column["name"] for column in each.get_columns(table.name)} for side, each in sides.items()}
        if lost := sorted(found["source"] - known):
            raise CopyError(
                f"The model of the table {table.name} lacks these columns of the source, whose values would be lost:"
                f" {', '.join(lost)}. Add them to the model, or remove them from the source."
            )
        for side, names in found.items():
            if missing := sorted(known - names):
                raise CopyError(f"The table {table.name} in the {side} lacks {', '.join(missing)}. Run `db check`.")


def require_readable_times(source: Connection, table: Table) -> None:
    """Raise CopyError for a date or time that PostgreSQL can store and Python cannot, such as infinity."""
    if source.dialect.name != "postgresql":
        return
    for column in table.columns:
        if isinstance(column.type, UTCDateTime | Date | DateTime):
            is_readable = (column >= EARLIEST) & (column < LATEST)
            row = source.execute(select(*table.primary_key.columns).select_from(table).where(~is_readable)).first()
            if row is not None:
                raise CopyError(f"{table.name}, {write_key(table, row)}: {column.name} is not in the years 1 to 9999.")


def write_key(table: Table, row: Row[Any]) -> str:
    """Return the primary key of a row as text."""
    names = [column.name for column in table.primary_key.columns]
    return ", ".join(f"{name}={row._mapping[name]}" for name in names) or "a row without a primary key"


def require_empty(target: Connection, ignored: Collection[str]) -> None:
    names = sorted(list_tables(target) - set(ignored) - {VERSION_TABLE})
    if filled := [name for name in names if _has_rows(target, name)]:
        raise CopyError(
            f"The target is not empty: {', '.join(filled)} already has rows. Copy into a new database. If a migration"
            f" has inserted these rows, use --replace, such as --replace {filled[0]}: it deletes the rows of this table"
            " first."
        )


def list_tables(connection: Connection) -> set[str]:
    """Return the names of the service's tables, including unknown ones."""
    if connection.dialect.name == "postgresql":
        return set(connection.scalars(OWN_TABLES))
    return set(inspect(connection).get_table_names())


def _has_rows(connection: Connection, name: str) -> bool:
    return connection.execute(select(literal_column("1")).select_from(TableClause(name)).limit(1)).first() is not None
