"""Alembic, one run at a time however many processes and hosts start together."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from alembic import command
from alembic.runtime.migration import MigrationContext
from filelock import AsyncFileLock
from sqlalchemy import Connection, bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql import func

from app.core.config import Settings
from app.core.database import create_patient_engine
from app.core.schema import alembic_config

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


async def run_alembic(connection: AsyncConnection, alembic_command: Callable[..., object], *arguments: str) -> None:
    """Run a command of `alembic.command` on this connection, and commit."""
    await connection.run_sync(lambda sync: alembic_command(alembic_config(sync), *arguments))
    await connection.commit()


async def upgrade(settings: Settings, revision: str = "head") -> None:
    async with locked_connection(settings) as connection:
        await run_alembic(connection, command.upgrade, revision)


async def downgrade(settings: Settings, revision: str) -> None:
    async with locked_connection(settings) as connection:
        await run_alembic(connection, command.downgrade, revision)


async def check(settings: Settings) -> None:
    """Compare the models with the schema; raises alembic's CommandError where they differ."""
    async with locked_connection(settings) as connection:
        await run_alembic(connection, command.check)
