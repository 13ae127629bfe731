"""Deletion of expired rows: by a command, and periodically in each worker, so that no cron job is needed."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import structlog

from app.core.config.settings import Settings
from app.core.db.session import Database, Session
from app.core.errors import first_line

logger = structlog.get_logger(__name__)

# Deletes a batch of expired rows and returns their number; it is called again until it returns 0.
Purge = Callable[[Session, Settings], Awaitable[int]]


async def purge(database: Database, settings: Settings, purges: Sequence[Purge]) -> int:
    """Run all purges, even if one fails; then return the number of deleted rows, or raise the last error."""
    deleted, failed = 0, None
    for purge_batch in purges:
        try:
            deleted += await _purge_all(database, settings, purge_batch)
        except Exception as error:  # the remaining purges must still run
            logger.warning("purge failed", error=type(error).__name__, reason=first_line(error))
            failed = error
    if failed is not None:
        raise failed
    return deleted


async def _purge_all(database: Database, settings: Settings, purge_batch: Purge) -> int:
    """Delete in batches, each in a short transaction, so that other transactions do not wait long for its locks."""
    deleted = 0
    while True:
        async with database.write() as session:
            batch = await purge_batch(session, settings)
        deleted += batch
        if not batch:
            return deleted


@asynccontextmanager
async def purge_periodically(database: Database, settings: Settings, purges: Sequence[Purge]) -> AsyncIterator[None]:
    """Purge every PURGE_INTERVAL_SECONDS in a task that ends with the `with` block; do nothing if the setting is 0."""
    if settings.purge_interval_seconds == 0:
        yield
        return
    task = asyncio.create_task(_purge_forever(database, settings, purges))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _purge_forever(database: Database, settings: Settings, purges: Sequence[Purge]) -> None:
    while True:
        # Random, so that processes that have started together do not purge at the same time.
        await asyncio.sleep(settings.purge_interval_seconds * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
        # `purge` has logged the error, and the next round tries again.
        with suppress(Exception):
            logger.info("purged", rows=await purge(database, settings, purges))
