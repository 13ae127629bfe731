"""Stored objects, which never change once they are written: in a folder, or in a bucket (app/core/storage_s3.py)."""

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Annotated, BinaryIO, Protocol, TypeVar
from uuid import UUID

import structlog
from fastapi import Depends, Request

from app.core.config.settings import Settings
from app.core.exceptions import UnavailableError, first_line

logger = structlog.get_logger(__name__)

PARTIAL_SUFFIX = ".partial"
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


def create_store(settings: Settings) -> ObjectStore | None:
    """Return None where neither a folder nor a bucket is configured."""
    if settings.storage_s3_bucket is not None:
        # Imported lazily: only a bucket needs the client of S3.
        from app.core.storage_s3 import S3Store

        return S3Store(settings)
    return None if settings.files_folder is None else FolderStore(settings.files_folder)


def require_store(store: ObjectStore | None) -> ObjectStore:
    if store is None:
        raise UnavailableError("No storage for files is configured.")
    return store


async def get_store(request: Request) -> ObjectStore:
    return require_store(request.state.store)


StoreDep = Annotated[ObjectStore, Depends(get_store)]


def object_path(key: UUID) -> str:
    """Spread objects over 256 folders, by the end of the key: UUIDs of version 7 begin with the time."""
    return f"{key.hex[-2:]}/{key}"


class FolderStore:
    """One file per object."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def save(self, key: UUID, chunks: AsyncIterable[bytes]) -> None:
        path = self._folder / object_path(key)
        partial = path.with_suffix(PARTIAL_SUFFIX)
        try:
            with await run_blocking(_create, partial) as file:
                async for chunk in chunks:
                    await run_blocking(_write, file, chunk)
                await run_blocking(os.fsync, file.fileno())
            await run_blocking(self._publish, partial, path)
        finally:
            # Where it was renamed, or never made, there is none.
            with suppress(OSError):
                partial.unlink()

    def _publish(self, partial: Path, path: Path) -> None:
        partial.replace(path)
        sync_path(path.parent)
        # It may be the first object in its folder.
        sync_path(self._folder)

    async def open(self, key: UUID) -> AsyncIterator[bytes]:
        path = self._folder / object_path(key)
        file = await run_blocking(_open, path)
        if file is None:
            raise FileNotFoundError(path)
        return _read(file)

    async def delete(self, key: UUID) -> None:
        await run_blocking(_remove, self._folder / object_path(key))


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


def sync_path(path: Path) -> None:
    """Have a file, or a folder's entries, outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path) -> FileIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a buffer, which `close` would try to write once more to a full disk.
    return path.open("wb", buffering=0)


def _write(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


async def _read(file: BinaryIO) -> AsyncIterator[bytes]:
    with file:
        while chunk := await run_blocking(file.read, CHUNK_BYTES):
            yield chunk


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(PARTIAL_SUFFIX).unlink(missing_ok=True)
