"""Objects in a bucket of AWS S3 or a compatible store."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as Bucket

from app.core.config.settings import Settings
from app.core.storage.objects import CHUNK_BYTES, object_path, run_blocking

if TYPE_CHECKING:
    from obstore import GetResult, WritableFile
    from obstore.store import S3Config

T = TypeVar("T")
ERRORS = (BaseError, OSError)
# The minimum size of a part in S3. Smaller objects are sent in one request.
PART_BYTES = 5 * 1024 * 1024
# How long a request may make no progress.
STALL_TIMEOUT = timedelta(seconds=30)
# Timeout of a whole response: a client may download slowly.
RESPONSE_TIMEOUT = timedelta(days=1)
RETRY_LIMIT = 3


class S3Store:
    """Stores objects in a bucket.

    obstore's blocking API runs in threads, because its asyncio API can crash the process at exit.
    """

    def __init__(self, settings: Settings) -> None:
        config: S3Config = {"region": settings.storage_s3_region}
        if settings.storage_s3_endpoint is not None:
            config["endpoint"] = settings.storage_s3_endpoint
        if settings.storage_s3_access_key_id is not None and settings.storage_s3_secret_access_key is not None:
            config["access_key_id"] = settings.storage_s3_access_key_id
            config["secret_access_key"] = settings.storage_s3_secret_access_key.get_secret_value()
        self._bucket = Bucket(
            settings.storage_s3_bucket,
            config=config,
            client_options={
                "allow_http": config.get("endpoint", "").startswith("http://"),
                "timeout": RESPONSE_TIMEOUT,
                "read_timeout": STALL_TIMEOUT,
            },
            retry_config={"max_retries": RETRY_LIMIT, "retry_timeout": STALL_TIMEOUT},
        )

    async def save(self, key: UUID, chunks: AsyncIterable[bytes]) -> None:
        path = object_path(key)
        writer = obstore.open_writer(self._bucket, path, buffer_size=PART_BYTES, max_concurrency=1)
        try:
            async for chunk in chunks:
                await _run(writer.write, chunk)
            await _run(writer.close)
        except BaseException:
            await _run(_discard, writer, self._bucket, path)
            raise

    async def open(self, key: UUID) -> AsyncIterator[bytes]:
        path = object_path(key)
        found = await _run(_get, self._bucket, path)
        if found is None:
            raise FileNotFoundError(path)
        return _read(iter(found.stream(min_chunk_size=CHUNK_BYTES)))

    async def delete(self, key: UUID) -> None:
        await _run(obstore.delete, self._bucket, object_path(key))


async def _run(function: Callable[..., T], *arguments: object) -> T:
    return await run_blocking(function, *arguments, errors=ERRORS)


def _discard(writer: "WritableFile", bucket: Bucket, path: str) -> None:
    """Complete the object and delete it: obstore cannot abort an upload, whose parts would remain in the bucket."""
    with suppress(*ERRORS):
        writer.close()
    with suppress(*ERRORS):
        obstore.delete(bucket, path)


def _get(bucket: Bucket, path: str) -> "GetResult | None":
    try:
        return obstore.get(bucket, path)
    except FileNotFoundError:
        return None


async def _read(stream: Iterator[bytes]) -> AsyncIterator[bytes]:
    while chunk := await _run(next, stream, b""):
        yield chunk
