"""Delete what nobody needs any more, now and then: no timer of the platform has to be set up."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import structlog

from app.core.config.settings import Settings
from app.core.db.session import Database, Session
from app.core.errors import first_line

logger = structlog.get_logger(__name__)

# Returns how many rows it has deleted; it is asked again until there are none.
Purge = Callable[[Session, Settings], Awaitable[int]]


async def purge(database: Database, settings: Settings, purges: Sequence[Purge]) -> int:
    """Return how many rows were deleted; one kind that fails does not keep the others from it."""
    deleted, failed = 0, None
    for purge_some in purges:
        try:
            deleted += await _purge_all(database, settings, purge_some)
        except Exception as error:  # whatever it is: it is told
            logger.warning("purge failed", error=type(error).__name__, reason=first_line(error))
            failed = error
    if failed is not None:
        raise failed
    return deleted


async def _purge_all(database: Database, settings: Settings, purge_some: Purge) -> int:
    """Delete some at a time, in transactions of their own, which hold nobody up for long."""
    deleted = 0
    while True:
        async with database.write() as session:
            some = await purge_some(session, settings)
        deleted += some
        if not some:
            return deleted


@asynccontextmanager
async def purge_periodically(database: Database, settings: Settings, purges: Sequence[Purge]) -> AsyncIterator[None]:
    """Purge now and then for as long as the service runs."""
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
        # At a time of its own for each of the processes that start together.
        await asyncio.sleep(settings.purge_interval_seconds * random.uniform(0.5, 1.5))  # noqa: S311  # no secret
        # What fails was told, and is tried again.
        with suppress(Exception):
            logger.info("purged", rows=await purge(database, settings, purges))
