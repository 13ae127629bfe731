"""The object stores: a folder and, if TEST_S3_ENDPOINT and the other S3_VARIABLES are set, a bucket."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from uuid_utils.compat import uuid7

from app.core.config.settings import Settings
from app.core.errors import UnavailableError
from app.core.project import ROOT
from app.core.storage.folder import FolderStore
from app.core.storage.objects import ObjectStore, run_blocking
from app.core.storage.store import create_store
from tests.support.databases import make_settings, unreachable_url

MEBIBYTE = 1024 * 1024
# Larger than a part of an S3 upload.
LARGE = 12 * MEBIBYTE
S3_VARIABLES = ("ENDPOINT", "BUCKET", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
KINDS = ["folder", "s3"] if "TEST_S3_ENDPOINT" in os.environ else ["folder"]
# Saves an object. With the argument `kill`, the process is killed during the upload; otherwise it ends normally.
SCRIPT = """
import asyncio, os, sys
from uuid import UUID
from app.core.config.load import load_settings
from app.core.storage.store import create_store

async def chunks(deadly):
    for _ in range(192):
        yield bytes(65536)
    if deadly:
        os.kill(os.getpid(), 9)

async def main():
    store, key = create_store(load_settings()), UUID(sys.argv[1])
    await store.save(key, chunks(sys.argv[2] == "kill"))
    print(sum([len(chunk) async for chunk in await store.open(key)]))
    await store.delete(key)

asyncio.run(main())
"""


@pytest.fixture(params=KINDS)
def variables(request: pytest.FixtureRequest, storage_folder: Path) -> dict[str, str]:
    """The environment variables that configure the store."""
    if request.param == "folder":
        return {"STORAGE_FOLDER": str(storage_folder)}
    return {f"STORAGE_S3_{name}": os.environ[f"TEST_S3_{name}"] for name in S3_VARIABLES}


@pytest.fixture
def store(variables: dict[str, str]) -> ObjectStore:
    return require(make_settings(unreachable_url(), **{name.lower(): value for name, value in variables.items()}))


def require(settings: Settings) -> ObjectStore:
    store = create_store(settings)
    assert store is not None
    return store


async def generate(size: int, chunk_size: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, size, chunk_size):
        yield (start // chunk_size % 251).to_bytes() * min(chunk_size, size - start)


async def collect(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def is_there(store: ObjectStore, key: object) -> bool:
    try:
        await collect(await store.open(key))  # type: ignore[arg-type]  # every key is a UUID
    except FileNotFoundError:
        return False
    return True


def list_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("size", [0, 1, 100_000, LARGE], ids=["empty", "byte", "small", "large"])
async def test_saved_object_is_read_back_unchanged(store: ObjectStore, size: int) -> None:
    key = uuid7()

    await store.save(key, generate(size))
    read = await collect(await store.open(key))
    await store.delete(key)

    assert read == await collect(generate(size))


async def test_a_deleted_object_is_gone_and_can_be_deleted_again(store: ObjectStore) -> None:
    key, other = uuid7(), uuid7()
    await store.save(key, generate(10))
    await store.save(other, generate(10))

    await store.delete(key)
    await store.delete(key)

    assert not await is_there(store, key)
    assert await is_there(store, other)
    await store.delete(other)


async def test_object_with_failed_source_is_not_stored(store: ObjectStore, storage_folder: Path) -> None:
    key = uuid7()

    async def fail() -> AsyncIterator[bytes]:
        async for chunk in generate(LARGE):
            yield chunk
        raise ConnectionError("the client is gone")

    with pytest.raises(ConnectionError, match="the client is gone"):
        await store.save(key, fail())

    assert not await is_there(store, key)
    assert list_files(storage_folder) == []


async def test_object_with_cancelled_writer_is_not_stored(store: ObjectStore, storage_folder: Path) -> None:
    key, begun = uuid7(), asyncio.Event()

    async def stall() -> AsyncIterator[bytes]:
        async for chunk in generate(LARGE):
            yield chunk
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.save(key, stall()))
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert task.cancelled()
    assert not await is_there(store, key)
    assert list_files(storage_folder) == []


async def test_object_is_not_visible_while_it_is_written(store: ObjectStore) -> None:
    key, seen = uuid7(), []

    async def look() -> AsyncIterator[bytes]:
        async for chunk in generate(LARGE):
            yield chunk
        seen.append(await is_there(store, key))

    await store.save(key, look())

    assert seen == [False]
    assert await is_there(store, key)
    await store.delete(key)


async def test_object_of_killed_process_is_invisible_and_can_be_deleted(
    store: ObjectStore, variables: dict[str, str], storage_folder: Path
) -> None:
    key = uuid7()

    killed = await asyncio.to_thread(run_script, variables, str(key), "kill")
    is_visible = await is_there(store, key)
    await store.delete(key)

    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not is_visible
    assert list_files(storage_folder) == []


async def test_process_ends_without_error_after_using_store(variables: dict[str, str]) -> None:
    # Several runs with S3: threads of the client that outlive the interpreter abort the process only sometimes.
    for _ in range(1 if "STORAGE_FOLDER" in variables else 3):
        done = await asyncio.to_thread(run_script, variables, str(uuid4()), "end")

        assert (done.returncode, done.stdout, done.stderr) == (0, f"{LARGE}\n", "")


def run_script(variables: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "SECRET_KEY": "x" * 32, "DATABASE_URL": unreachable_url(), **variables}
    command = [sys.executable, "-B", "-c", SCRIPT, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)  # noqa: S603  # a command of this test, without input from outside


async def test_a_large_object_does_not_fill_the_memory(store: ObjectStore) -> None:
    key, size = uuid7(), 64 * MEBIBYTE
    tracemalloc.start()
    try:
        await store.save(key, generate(size))
        read = sum([len(chunk) async for chunk in await store.open(key)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    await store.delete(key)

    assert read == size
    assert peak < 8 * MEBIBYTE


@pytest.mark.parametrize("key", ["../../escape", "/tmp/escape", "a/b"])  # noqa: S108  # never made
async def test_a_key_is_an_id_and_cannot_be_a_path(store: ObjectStore, storage_folder: Path, key: str) -> None:
    with pytest.raises(AttributeError):
        await store.save(key, generate(1))  # type: ignore[arg-type]  # a wrong type on purpose

    assert list_files(storage_folder.parent) == []


async def test_unwritable_folder_is_reported_as_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = FolderStore(tmp_path / "file" / "folder")

    with pytest.raises(UnavailableError, match="The storage for files is not available"):
        await store.save(uuid7(), generate(1))
    with pytest.raises(UnavailableError):
        await store.open(uuid7())


async def test_full_disk_is_reported_as_unavailable_and_leaves_no_file(storage_folder: Path) -> None:
    key, store = uuid7(), FolderStore(storage_folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit of the file size simulates a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (MEBIBYTE, hard))
    try:
        with pytest.raises(UnavailableError, match="The storage for files is not available"):
            await store.save(key, generate(LARGE, chunk_size=1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert not await is_there(store, key)
    assert list_files(storage_folder) == []


async def test_unreachable_bucket_is_reported_as_unavailable() -> None:
    key = {"storage_s3_access_key_id": "key", "storage_s3_secret_access_key": "secret"}
    server = {"storage_s3_bucket": "files", "storage_s3_endpoint": "http://127.0.0.1:1"}
    store = require(make_settings(unreachable_url(), **server, **key))

    for attempt in (store.save(uuid7(), generate(1)), store.open(uuid7()), store.delete(uuid7())):
        with pytest.raises(UnavailableError, match="The storage for files is not available"):
            await attempt


async def test_hanging_store_does_not_use_up_threads_of_other_work() -> None:
    released = threading.Event()
    # More than the maximum number of threads in asyncio's default pool.
    hanging = [asyncio.create_task(run_blocking(released.wait)) for _ in range(40)]
    try:
        await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "done"), timeout=60) == "done"
    finally:
        released.set()
        await asyncio.gather(*hanging)
