"""Alembic, one run at a time however many processes and hosts start together."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from alembic import command
from alembic.runtime.migration import MigrationContext
from filelock import AsyncFileLock
from sqlalchemy import Connection, bindparam, event, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import func

from app.core.config import Settings
from app.core.database import create_patient_engine
from app.core.schema import MigrationsError, alembic_config, read_revisions

# Any number will do, as long as nothing else in the database takes the same lock.
LOCK_KEY = 7_205_759_403
LOCK = select(func.pg_advisory_lock(bindparam("key")))
UNLOCK = select(func.pg_advisory_unlock(bindparam("key")))


def current_revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


@asynccontextmanager
async def locked_connection(settings: Settings) -> AsyncIterator[AsyncConnection]:
    """Open the connection that may change the schema; whoever comes second waits here."""
    engine = create_patient_engine(settings)
    try:
        if engine.dialect.name == "sqlite":
            event.listen(engine.sync_engine, "connect", _on_sqlite_connect)
            async with AsyncFileLock(f"{settings.url.database}.lock"), engine.connect() as connection:
                yield connection
        else:
            async with engine.connect() as connection:
                # For the session and not the transaction: a migration may need to commit in between.
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
    """Enforce no foreign keys: Alembic drops and renames tables to change them, and would delete what refers to them.

    migrations/env.py checks all rows after each migration instead.
    """
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = OFF")
    cursor.close()


async def run_alembic(connection: AsyncConnection, alembic_command: Callable[..., object], *arguments: str) -> None:
    """Run a command of `alembic.command` on this connection, and commit; raises MigrationsError."""
    # Alembic itself would run one of two migrations with the same number.
    read_revisions()
    await connection.run_sync(lambda sync: alembic_command(alembic_config(sync), *arguments))
    await connection.commit()


async def upgrade(settings: Settings, revision: str = "head") -> bool:
    """Return False, and change nothing, where a newer release has migrated the database."""
    async with locked_connection(settings) as connection:
        if await _is_ahead(connection):
            return False
        await run_alembic(connection, command.upgrade, revision)
    return True


async def downgrade(settings: Settings, revision: str) -> None:
    async with locked_connection(settings) as connection:
        await _require_known(connection)
        await run_alembic(connection, command.downgrade, revision)


async def check(settings: Settings) -> None:
    """Compare the models with the schema; raises alembic's CommandError where they differ."""
    async with locked_connection(settings) as connection:
        await _require_known(connection)
        await run_alembic(connection, command.check)


async def write_migration(settings: Settings, message: str) -> None:
    """Bring the schema to head, and write the migration from there to the models."""
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
