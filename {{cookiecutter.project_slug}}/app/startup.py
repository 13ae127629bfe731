"""UPDATE_DB and RESET_DB: migrate or reset once, even if many workers and hosts start at the same time."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import structlog
from alembic import command
from sqlalchemy import Column, Connection, Float, MetaData, Table, insert, inspect, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db import migrations
from app.core.db.revisions import head_revision
from app.core.db.session import Database, Session
from app.core.feature import Feature
from app.core.process.lifecycle import started_at

logger = structlog.get_logger(__name__)

# Created only by a reset: it exists in no production database and in no migration.
LAST_RESET = Table("last_reset", MetaData(), Column("ended_at", Float, nullable=False))


async def prepare_database(settings: Settings, features: Sequence[Feature]) -> None:
    """Migrate or reset once per start of the service, so that workers can restart while the database is unavailable."""
    if _already_prepared():
        return
    if settings.reset_db:
        await reset_once(settings, features)
        _remember_prepared()
    elif settings.update_db:
        await update_once(settings)


def _already_prepared() -> bool:
    marker = _marker_path()
    return marker is not None and marker.exists()


def _remember_prepared() -> bool:
    """Create the marker file; return False if another worker of this start has already created it."""
    marker = _marker_path()
    try:
        if marker is not None:
            marker.touch(mode=0o600, exist_ok=False)
    except FileExistsError:
        return False
    return True


def _marker_path() -> Path | None:
    """Return the path of the marker file, in a folder that all workers of this start share; None for one process."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    # The name contains the start time, because a folder that the operator has set also exists at later starts. The
    # name also contains the head revision, because a reload may add migrations.
    return Path(folder, f"prepared_{started_at()}_{head_revision()}") if folder else None


async def update_once(settings: Settings) -> None:
    """Upgrade the schema to head unless it is ahead; one of the workers logs the result."""
    is_ahead = not await migrations.upgrade(settings)
    if not _remember_prepared():
        return
    if is_ahead:
        logger.warning("a newer release has migrated the database: the schema is unchanged")
    else:
        logger.info("the database is up to date")


async def reset_once(settings: Settings, features: Sequence[Feature]) -> None:
    """Reset the database unless another process has done so since this service started."""
    async with migrations.locked_connection(settings) as connection:
        last_reset = await connection.run_sync(_read_last_reset)
        await connection.rollback()
        if last_reset is None or last_reset < started_at():
            await _reset(connection, settings, features)
            logger.info("the database was reset, and the sample data is loaded")


async def reset(settings: Settings, features: Sequence[Feature]) -> None:
    async with migrations.locked_connection(settings) as connection:
        await _reset(connection, settings, features)


async def _reset(connection: AsyncConnection, settings: Settings, features: Sequence[Feature]) -> None:
    await connection.run_sync(_drop_everything)
    await connection.run_sync(LAST_RESET.create)
    await migrations.run_alembic(connection, command.upgrade, "head")
    await migrations.grant_access(connection, settings)
    async with Session(connection, {}) as session:
        ctx = Context.for_operator(session, Database(reading=connection, writing=connection), settings)
        for feature in features:
            if feature.load_sample_data is not None:
                await feature.load_sample_data(ctx)
        await session.execute(insert(LAST_RESET), {"ended_at": time.time()})
        await session.commit()


def _read_last_reset(connection: Connection) -> float | None:
    if not inspect(connection).has_table(LAST_RESET.name):
        return None
    return connection.scalar(select(LAST_RESET.c.ended_at))


def _drop_everything(connection: Connection) -> None:
    """Drop all tables and views, even those unknown to migrations, so that a reset repairs a broken schema."""
    _drop_views(connection)
    existing = MetaData()
    existing.reflect(connection)
    existing.drop_all(connection)


def _drop_views(connection: Connection) -> None:
    """Drop all views: PostgreSQL drops no table that a view reads. SQLite has no CASCADE and does not need it."""
    is_sqlite = connection.dialect.name == "sqlite"
    inspector = inspect(connection)
    views = {"VIEW": inspector.get_view_names()}
    if not is_sqlite:
        views["MATERIALIZED VIEW"] = inspector.get_materialized_view_names()
    quote = connection.dialect.identifier_preparer.quote
    for kind, names in views.items():
        for name in names:
            # IF EXISTS: CASCADE has already dropped this view if it reads a view that was dropped before.
            connection.exec_driver_sql(f"DROP {kind} IF EXISTS {quote(name)}{'' if is_sqlite else ' CASCADE'}")
