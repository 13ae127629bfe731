"""Stored objects, which never change once they are written: in a folder, or in a bucket (app/core/storage/s3.py)."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Protocol, TypeVar
from uuid import UUID

import structlog

from app.core.errors import UnavailableError, first_line

logger = structlog.get_logger(__name__)
CHUNK_BYTES = 256 * 1024
# A separate pool: a store that hangs must not exhaust the threads that readiness and the metrics need.
_THREADS = ThreadPoolExecutor(8, thread_name_prefix="storage")
T = TypeVar("T")


class ObjectStore(Protocol):
    """Every method raises UnavailableError when the store does not work."""

    async def save(self, key: UUID, chunks: AsyncIterable[bytes]) -> None:
        """Write an object, which is there once it is whole, and never if `chunks` raises an error."""

    async def open(self, key: UUID) -> AsyncIterator[bytes]:
        """Return an object's content; raises FileNotFoundError before the first chunk."""

    async def delete(self, key: UUID) -> None:
        """Delete an object, and what an interrupted `save` has left of it; either may be gone already."""


def object_path(key: UUID) -> str:
    """Spread objects over 256 folders, by the end of the key: UUIDs of version 7 begin with the time."""
    return f"{key.hex[-2:]}/{key}"


async def run_blocking(
    function: Callable[..., T], *arguments: object, errors: type[Exception] | tuple[type[Exception], ...] = OSError
) -> T:
    """Run a store's operation in a thread, to its end even if the caller is cancelled: the next may need its file."""
    run = partial(copy_context().run, function, *arguments)
    task = asyncio.get_running_loop().run_in_executor(_THREADS, run)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
    except errors as error:
        logger.warning("file storage unavailable", error=type(error).__name__, reason=first_line(error))
        raise UnavailableError("The storage for files is not available.") from error
