"""Files of users: upload, deletion, purging and download."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from sqlalchemy import select, update
from starlette.types import Message

from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.dependencies import DatabaseDep, SessionDep, StoreDep
from app.core.errors import NotFoundError
from app.core.storage.folder import FolderStore
from app.core.storage.objects import ObjectStore, object_path
from app.files import service
from app.files.downloads import download
from app.files.models import FileRecord, StoredFile
from tests.core.storage.test_storage import collect, list_files
from tests.support.accounts import Account, confirmed
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings

CONTENT = b"a file of Ada's"
A_LOT = 8 * 1024 * 1024
router = APIRouter()


@router.post("/files")
async def upload_in_test(
    request: Request, owner_id: UUID, database: DatabaseDep, store: StoreDep, session: SessionDep
) -> dict[str, str]:
    saved = await service.save(
        database, store, owner_id, filename="a.txt", media_type="text/plain", chunks=request.stream()
    )
    return {"id": str((await service.keep(session, saved)).id)}


@router.get("/files/{file_id}")
async def read_in_test(file_id: UUID, store: StoreDep, session: SessionDep) -> Response:
    return await download(store, await service.get_file(session, file_id))


@pytest.fixture
def store(storage_folder: Path) -> ObjectStore:
    return FolderStore(storage_folder)


@pytest.fixture
def owner_id(user: Account) -> UUID:
    return UUID(user.id)


async def give(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def add_file(database: Database, store: ObjectStore, owner_id: UUID, content: bytes = CONTENT) -> FileRecord:
    saved = await service.save(
        database, store, owner_id, filename="a.txt", media_type="text/plain", chunks=give(content)
    )
    async with database.write() as session:
        return await service.keep(session, saved)


async def list_rows(database: Database) -> set[UUID]:
    async with database.read() as session:
        return {row.id for row in (await session.execute(select(StoredFile.id))).all()}


async def purge(database: Database, settings: Settings, **options: int) -> int:
    async with database.write() as session:
        return await service.purge_files(session, settings, **options)


async def let_a_day_pass(database: Database) -> None:
    async with database.write() as session:
        rows = (await session.execute(select(StoredFile.id, StoredFile.expires_at))).all()
        for row in rows:
            if row.expires_at is not None:
                earlier = row.expires_at - timedelta(days=1, seconds=1)
                await session.execute(update(StoredFile).where(StoredFile.id == row.id).values(expires_at=earlier))


async def test_kept_file_has_the_uploaded_content_and_metadata(
    database: Database, store: ObjectStore, owner_id: UUID
) -> None:
    chunks = give(CONTENT[:5], b"", CONTENT[5:])

    saved = await service.save(
        database, store, owner_id, filename="Résumé.pdf", media_type="application/pdf", chunks=chunks
    )
    async with database.write() as session:
        kept = await service.keep(session, saved)
    async with database.read() as session:
        file = await service.get_file(session, saved.id)

    assert file == kept
    assert (file.owner_id, file.filename, file.media_type) == (owner_id, "Résumé.pdf", "application/pdf")
    assert (file.size, file.checksum) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert await collect(await store.open(file.id)) == CONTENT


async def test_database_row_is_written_before_the_object(
    database: Database, store: ObjectStore, owner_id: UUID, storage_folder: Path
) -> None:
    seen: list[tuple[int, list[Path]]] = []

    async def look() -> AsyncIterator[bytes]:
        seen.append((len(await list_rows(database)), [path for path in list_files(storage_folder) if not path.suffix]))
        yield CONTENT

    await service.save(database, store, owner_id, filename="a", media_type="a/b", chunks=look())

    assert seen == [(1, [])]


async def test_upload_that_was_not_kept_is_not_found(database: Database, store: ObjectStore, owner_id: UUID) -> None:
    saved = await service.save(database, store, owner_id, filename="a", media_type="a/b", chunks=give(CONTENT))

    async with database.read() as session:
        with pytest.raises(NotFoundError, match="not found"):
            await service.get_file(session, saved.id)


async def test_a_client_that_hangs_up_leaves_a_row_that_expires(
    database: Database, store: ObjectStore, owner_id: UUID, storage_folder: Path, settings: Settings
) -> None:
    async def hang_up() -> AsyncIterator[bytes]:
        yield CONTENT
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await service.save(database, store, owner_id, filename="a", media_type="a/b", chunks=hang_up())
    begun = await list_rows(database)
    await let_a_day_pass(database)

    assert (len(begun), await purge(database, settings)) == (1, 1)
    assert (await list_rows(database), list_files(storage_folder)) == (set(), [])


async def test_a_deleted_file_is_gone_at_once_and_its_content_a_day_later(
    database: Database, store: ObjectStore, owner_id: UUID, settings: Settings
) -> None:
    deleted, other = await add_file(database, store, owner_id), await add_file(database, store, owner_id)
    async with database.write() as session:
        await service.delete_file(session, deleted.id)

    async with database.read() as session:
        with pytest.raises(NotFoundError):
            await service.get_file(session, deleted.id)
    assert await purge(database, settings) == 0
    assert await collect(await store.open(deleted.id)) == CONTENT
    await let_a_day_pass(database)
    assert await purge(database, settings) == 1

    with pytest.raises(FileNotFoundError):
        await store.open(deleted.id)
    assert await list_rows(database) == {other.id}
    assert await collect(await store.open(other.id)) == CONTENT


async def test_deleting_file_twice_does_not_postpone_its_expiry(
    database: Database, store: ObjectStore, owner_id: UUID, settings: Settings
) -> None:
    file = await add_file(database, store, owner_id)
    for _ in range(2):
        async with database.write() as session:
            await service.delete_file(session, file.id)
        await let_a_day_pass(database)

    assert await purge(database, settings) == 1


async def test_the_files_of_a_deleted_account_are_purged(
    client: httpx2.AsyncClient,
    database: Database,
    store: ObjectStore,
    user: Account,
    admin: Account,
    settings: Settings,
    storage_folder: Path,
) -> None:
    await add_file(database, store, UUID(user.id))
    unfinished = await service.save(
        database, store, UUID(user.id), filename="a", media_type="a/b", chunks=give(CONTENT)
    )
    other = await add_file(database, store, UUID(admin.id))

    gone = await client.delete("/api/v1/users/me", headers=await confirmed(client, user))
    early = await purge(database, settings)
    await let_a_day_pass(database)
    late = await purge(database, settings)

    assert (gone.status_code, early, late) == (204, 0, 2)
    assert await list_rows(database) == {other.id}
    assert [path.name for path in list_files(storage_folder)] == [str(other.id)]
    assert unfinished.id != other.id


async def test_purge_deletes_files_in_batches(
    database: Database, store: ObjectStore, owner_id: UUID, settings: Settings
) -> None:
    for _ in range(3):
        await service.save(database, store, owner_id, filename="a", media_type="a/b", chunks=give(CONTENT))
    await let_a_day_pass(database)

    assert [await purge(database, settings, at_most=2) for _ in range(3)] == [2, 1, 0]


async def test_row_is_kept_if_its_object_cannot_be_deleted(
    database: Database, store: ObjectStore, owner_id: UUID, migrated_url: str
) -> None:
    saved = await service.save(database, store, owner_id, filename="a", media_type="a/b", chunks=give(CONTENT))
    await let_a_day_pass(database)
    key = {"storage_s3_access_key_id": "key", "storage_s3_secret_access_key": "secret"}
    out_of_reach = {"storage_s3_bucket": "files", "storage_s3_endpoint": "http://127.0.0.1:1", **key}

    tried = [await purge(database, make_settings(migrated_url, **out_of_reach)) for _ in range(2)]

    assert tried == [1, 0]
    assert await list_rows(database) == {saved.id}


async def test_undeletable_object_does_not_prevent_deletion_of_others(
    database: Database, store: ObjectStore, owner_id: UUID, settings: Settings, storage_folder: Path
) -> None:
    stuck, other = [
        await service.save(database, store, owner_id, filename="a", media_type="a/b", chunks=give(CONTENT))
        for _ in range(2)
    ]
    path = storage_folder / object_path(stuck.id)
    path.unlink()
    # Deleting the object fails, because its path is a folder.
    path.mkdir()
    await let_a_day_pass(database)

    tried = [await purge(database, settings, at_most=1) for _ in range(3)]

    assert tried == [1, 1, 0]
    assert await list_rows(database) == {stuck.id}
    assert not (storage_folder / object_path(other.id)).exists()


async def test_an_upload_that_has_expired_cannot_be_kept(
    database: Database, store: ObjectStore, owner_id: UUID
) -> None:
    saved = await service.save(database, store, owner_id, filename="a", media_type="a/b", chunks=give(CONTENT))
    await let_a_day_pass(database)

    async with database.write() as session:
        with pytest.raises(NotFoundError, match="Upload the file again"):
            await service.keep(session, saved)


def test_an_upload_ends_before_it_could_be_purged() -> None:
    assert service.UPLOAD_TIMEOUT < service.PURGE_DELAY


@pytest.fixture
async def site(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    app.include_router(router)
    async with open_client(app) as client:
        yield client


async def test_a_file_is_uploaded_and_downloaded(site: httpx2.AsyncClient, owner_id: UUID) -> None:
    content = b"x" * 1_000_000

    created = await site.post(f"/files?owner_id={owner_id}", content=content)
    answer = await site.get(f"/files/{created.json()['id']}")

    assert (answer.status_code, answer.content) == (200, content)
    assert answer.headers["content-length"] == "1000000"


async def test_download_of_missing_content_answers_503_and_is_logged(
    site: httpx2.AsyncClient, owner_id: UUID, storage_folder: Path, logs: io.StringIO
) -> None:
    file_id = (await site.post(f"/files?owner_id={owner_id}", content=b"x")).json()["id"]
    (storage_folder / object_path(UUID(file_id))).unlink()

    answer = await site.get(f"/files/{file_id}")

    assert answer.status_code == 503
    assert "the content of a file is missing" in logs.getvalue()


async def test_html_file_is_downloaded_as_attachment(
    site: httpx2.AsyncClient, database: Database, store: ObjectStore, owner_id: UUID
) -> None:
    saved = await service.save(
        database, store, owner_id, filename='Ä "1".html', media_type="text/html", chunks=give(b"<script>")
    )
    async with database.write() as session:
        await service.keep(session, saved)

    answer = await site.get(f"/files/{saved.id}")

    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''%C3%84%20%221%22.html"
    assert answer.headers["content-type"] == "text/html"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_upload_without_configured_storage_is_refused_with_explanation(
    migrated_url: str, database: Database, owner_id: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORAGE_FOLDER")
    production = {"environment": "production", "allowed_hosts": "localhost,example.com"}
    app = create_app(make_settings(migrated_url, **production, secret_key="Zx81mQ0pLr7tVb3nHy6kWd9sJf2gCa5e"), database)
    app.include_router(router)

    async with open_client(app) as client:
        answer = await client.post(f"/files?owner_id={owner_id}", content=b"x")

    assert (answer.status_code, answer.json()["detail"]) == (503, "No storage for files is configured.")


async def test_slow_clients_hold_no_database_connection(live_url: str, storage_folder: Path) -> None:
    settings = make_settings(live_url, database_pool_size=2, max_body_bytes=2 * A_LOT)
    app = create_app(settings)
    app.include_router(router)
    async with open_client(app) as client:
        owner = await client.post(
            "/api/v1/users", json={"email": "ada@example.com", "password": "correct horse battery staple"}
        )
        created = await client.post(f"/files?owner_id={owner.json()['id']}", content=b"x" * A_LOT)
    async with app.router.lifespan_context(app) as state, asyncio.TaskGroup() as group:
        slow = SlowClients(app, dict(state or {}), count=6)
        for _ in range(3):
            group.create_task(slow.get(f"/files/{created.json()['id']}"))
            group.create_task(slow.post("/files", f"owner_id={owner.json()['id']}"))
        await slow.are_stuck.wait()

        # If the slow clients held connections, the pool of two would be exhausted, and these statements would fail.
        database: Database = (state or {})["database"]
        rows = await list_rows(database)
        async with database.write() as session:
            await session.execute(update(StoredFile).values(filename="b.txt"))
        slow.go_on.set()

    assert len(rows) == 4
    assert slow.statuses == [200] * 6
    assert len([path for path in list_files(storage_folder) if not path.suffix]) == 4


class SlowClients:
    """Clients that send or read one chunk, and wait before the next one until `go_on` is set."""

    def __init__(self, app: FastAPI, state: dict[str, Any], count: int) -> None:
        self.are_stuck = asyncio.Event()
        self.go_on = asyncio.Event()
        self.statuses: list[int] = []
        self._app = app
        self._state = state
        self._count = count
        self._stuck: set[object] = set()

    async def get(self, path: str) -> None:
        async def send(message: Message) -> None:
            await self._note(message)
            if message["type"] == "http.response.body":
                await self._wait(asyncio.current_task())

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        await self._app(self._scope("GET", path), receive, send)

    async def post(self, path: str, query: str) -> None:
        sent = 0

        async def receive() -> Message:
            nonlocal sent
            sent += 1
            if sent > 1:
                await self._wait(asyncio.current_task())
            return {"type": "http.request", "body": b"x", "more_body": sent == 1}

        await self._app(self._scope("POST", path, query), receive, self._note)

    async def _wait(self, who: object) -> None:
        self._stuck.add(who)
        if len(self._stuck) == self._count:
            self.are_stuck.set()
        await self.go_on.wait()

    async def _note(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.statuses.append(message["status"])

    def _scope(self, method: str, path: str, query: str = "") -> dict[str, Any]:
        return {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "scheme": "http",
            "state": dict(self._state),
        }
