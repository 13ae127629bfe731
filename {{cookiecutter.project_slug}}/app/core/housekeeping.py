"""Delete what nobody needs any more, now and then: no timer of the platform has to be set up."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.config import Settings
from app.core.database import Database
from app.core.exceptions import first_line

logger = structlog.get_logger(__name__)

# Returns how many rows it has deleted.
Purge = Callable[[AsyncSession, Settings], Awaitable[int]]


async def purge(database: Database, settings: Settings, purges: Sequence[Purge]) -> int:
    """Return how many rows were deleted; each kind in a transaction of its own, which holds nobody up for long."""
    deleted = 0
    for purge_some in purges:
        async with database.write() as session:
            deleted += await purge_some(session, settings)
    return deleted


@asynccontextmanager
async def keep_house(database: Database, settings: Settings, purges: Sequence[Purge]) -> AsyncIterator[None]:
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
        try:
            deleted = await purge(database, settings, purges)
        except (SQLAlchemyError, OSError) as error:
            logger.warning("purge failed", error=first_line(error))
        else:
            logger.info("purged", rows=deleted)
