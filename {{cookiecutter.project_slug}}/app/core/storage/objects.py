"""Storage of immutable objects: in a folder, or in an S3 bucket (app/core/storage/s3.py)."""

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
# A separate thread pool: a store that hangs must not use up the threads that readiness checks and metrics need.
_THREADS = ThreadPoolExecutor(8, thread_name_prefix="storage")
T = TypeVar("T")


class ObjectStore(Protocol):
    """The interface of stores. Every method raises UnavailableError if the store fails."""

    async def save(self, key: UUID, chunks: AsyncIterable[bytes]) -> None:
        """Write an object atomically: it does not exist before it is complete, nor if `chunks` raises an error."""

    async def open(self, key: UUID) -> AsyncIterator[bytes]:
        """Return the chunks of an object; a missing object raises FileNotFoundError here, before the first chunk."""

    async def delete(self, key: UUID) -> None:
        """Delete an object and the remains of an interrupted `save`; do nothing if there are none."""


def object_path(key: UUID) -> str:
    """Return the path of an object, in one of 256 folders.

    The end of the key selects the folder, because the beginning of a UUIDv7 is the time and hardly varies.
    """
    return f"{key.hex[-2:]}/{key}"


async def run_blocking(
    function: Callable[..., T], *arguments: object, errors: type[Exception] | tuple[type[Exception], ...] = OSError
) -> T:
    """Run a blocking operation in a thread; raise UnavailableError for `errors`.

    If the caller is cancelled, wait for the end of the operation, because the caller's cleanup may use the same file.
    """
    run = partial(copy_context().run, function, *arguments)
    task = asyncio.get_running_loop().run_in_executor(_THREADS, run)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
    except errors as error:
        logger.warning("file storage unavailable", error=type(error).__name__, reason=first_line(error))
        raise UnavailableError(
            "The storage for files is not available. Try again in a moment.", code="storage-unavailable"
        ) from error
