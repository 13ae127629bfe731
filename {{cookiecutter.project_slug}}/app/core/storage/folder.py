import os
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from app.core.filesystem import sync_path
from app.core.storage.objects import CHUNK_BYTES, object_path, run_blocking

PARTIAL_SUFFIX = ".partial"


class FolderStore:
    """Stores each object in a file."""

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
            # Remove an unfinished file; there is none after the rename, or if the file could not be created.
            with suppress(OSError):
                partial.unlink()

    def _publish(self, partial: Path, path: Path) -> None:
        partial.replace(path)
        sync_path(path.parent)
        # Also sync the parent folder, because the object's folder may be a new entry in it.
        sync_path(self._folder)

    async def open(self, key: UUID) -> AsyncIterator[bytes]:
        path = self._folder / object_path(key)
        file = await run_blocking(_open, path)
        if file is None:
            raise FileNotFoundError(path)
        return _read(file)

    async def delete(self, key: UUID) -> None:
        await run_blocking(_remove, self._folder / object_path(key))


def _create(path: Path) -> FileIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: with a full disk, `close` would try to write the buffer again.
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
