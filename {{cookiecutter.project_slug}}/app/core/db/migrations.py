"""Runs Alembic under a lock, so that processes and hosts that start together migrate one after the other."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from alembic import command
from alembic.runtime.migration import MigrationContext
from filelock import AsyncFileLock
from sqlalchemy import Connection, bindparam, event, select, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import func

from app.core.config.settings import Settings
from app.core.db.engine import create_owner_engine
from app.core.db.models import APPEND_ONLY, Base
from app.core.db.revisions import MigrationsError, alembic_config, read_revisions
from app.core.errors import first_line

# An arbitrary number; nothing else in the database may take the same advisory lock.
LOCK_KEY = 7_205_759_403
LOCK = select(func.pg_advisory_lock(bindparam("key")))
UNLOCK = select(func.pg_advisory_unlock(bindparam("key")))
# SQLSTATE insufficient_privilege.
INSUFFICIENT_PRIVILEGE = "42501"
# This query returns statements that grant the service's role its rights on the owner's tables, sequences and SECURITY
# DEFINER functions. Earlier rights are revoked first, so that the role has no others.
GRANTS = text("""
    WITH objects AS (
        SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, pg_class.oid::regclass::text AS name,
            CASE WHEN relkind = 'S' THEN 'SELECT, USAGE'
                WHEN relname = 'alembic_version' THEN 'SELECT'
                WHEN relname = ANY(:append_only) THEN 'SELECT, INSERT'
                ELSE 'SELECT, INSERT, UPDATE, DELETE' END AS rights
        FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE nspname = current_schema() AND pg_get_userbyid(relowner) = current_user
            AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
        UNION ALL
        SELECT 'ROUTINE', pg_proc.oid::regprocedure::text, 'EXECUTE'
        FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
        WHERE nspname = current_schema() AND pg_get_userbyid(proowner) = current_user AND prosecdef
    )
    SELECT format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), CAST(:role AS text)) AS statement
    WHERE NOT has_schema_privilege(CAST(:role AS name), CAST(current_schema() AS text), 'USAGE')
    -- PostgreSQL lets everybody execute a new function.
    UNION ALL SELECT format('REVOKE ALL ON %s %s FROM PUBLIC', kind, name) FROM objects WHERE kind = 'ROUTINE'
    UNION ALL SELECT format('REVOKE ALL ON %s %s FROM %I', kind, name, CAST(:role AS text)) FROM objects
    UNION ALL SELECT format('GRANT %s ON %s %s TO %I', rights, kind, name, CAST(:role AS text)) FROM objects
    -- Each REVOKE before the first GRANT.
    ORDER BY statement DESC
""")


def current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@asynccontextmanager
async def locked_connection(settings: Settings) -> AsyncIterator[AsyncConnection]:
    """Provide a connection that may change the schema; wait for the migration lock and hold it in the `with` block."""
    engine = create_owner_engine(settings)
    try:
        if engine.dialect.name == "sqlite":
            event.listen(engine.sync_engine, "connect", _on_sqlite_connect)
            async with AsyncFileLock(f"{settings.url.database}.lock"), engine.connect() as connection:
                yield connection
        else:
            async with engine.connect() as connection:
                # A session-level lock: a commit within a migration would release a transaction-level lock.
                await connection.execute(LOCK, {"key": LOCK_KEY})
                await connection.commit()
                try:
                    yield connection
                finally:
                    await connection.rollback()
                    await connection.execute(UNLOCK, {"key": LOCK_KEY})
    finally:
        await engine.dispose()


def _on_sqlite_connect(connection: DBAPIConnection, _record: object) -> None:
    """Switch off foreign keys, because Alembic changes a table by replacing it.

    Dropping the old table would also delete the rows that refer to it with ON DELETE CASCADE. Instead,
    migrations/env.py checks the foreign keys of all rows after each migration.
    """
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    cursor.close()


async def run_alembic(connection: AsyncConnection, alembic_command: Callable[..., object], *arguments: str) -> None:
    """Run a function of `alembic.command` and commit; raise MigrationsError if the connection's role lacks a right."""
    # Raises MigrationsError for two migrations with the same number, of which Alembic would run only one.
    read_revisions()
    try:
        await connection.run_sync(lambda sync: alembic_command(alembic_config(sync), *arguments))
    except ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) != INSUFFICIENT_PRIVILEGE:
            raise
        hint = "Run this command as the role that owns the tables: set DATABASE_OWNER_USER."
        raise MigrationsError(f"{first_line(error)}. {hint}") from error
    await connection.commit()


async def grant_access(connection: AsyncConnection, settings: Settings) -> None:
    """Grant the service's role the rights that it needs, and commit; does nothing if the role owns the tables."""
    role = settings.url.username
    if role == settings.owner_url.username:
        return
    if role is None:
        raise MigrationsError(
            "DATABASE_OWNER_USER is set, but the role as which the service itself connects is not: set DATABASE_USER,"
            " or name this role in DATABASE_URL."
        )
    append_only = [table.name for table in Base.metadata.tables.values() if APPEND_ONLY in table.info]
    names = {"role": role, "append_only": append_only}
    for statement in (await connection.scalars(GRANTS, names)).all():
        # Escaped, because a table's name may contain `%`, which begins a parameter for the driver.
        await connection.exec_driver_sql(statement.replace("%", "%%"))
    await connection.commit()


async def upgrade(settings: Settings, revision: str = "head") -> bool:
    """Migrate to the revision; return False and change nothing if a newer release has migrated the database."""
    async with locked_connection(settings) as connection:
        if await _is_ahead(connection):
            return False
        await run_alembic(connection, command.upgrade, revision)
        await grant_access(connection, settings)
    return True


async def downgrade(settings: Settings, revision: str) -> None:
    async with locked_connection(settings) as connection:
        await _require_known(connection)
        await run_alembic(connection, command.downgrade, revision)
        await grant_access(connection, settings)


async def check(settings: Settings) -> None:
    """Compare the models with the schema; raise Alembic's CommandError if they differ."""
    async with locked_connection(settings) as connection:
        await _require_known(connection)
        await run_alembic(connection, command.check)


async def write_migration(settings: Settings, message: str) -> None:
    """Upgrade the schema to head, and write a migration from this schema to the models."""
    async with locked_connection(settings) as connection:
        await _require_known(connection)
        await run_alembic(connection, command.upgrade, "head")
        await run_alembic(connection, partial(command.revision, autogenerate=True), message)


async def _is_ahead(connection: AsyncConnection) -> bool:
    revision = await connection.run_sync(current_revision)
    await connection.rollback()
    return read_revisions().is_ahead(revision)


async def _require_known(connection: AsyncConnection) -> None:
    if await _is_ahead(connection):
        raise MigrationsError("A newer release has migrated this database: use that release for this command.")
