"""Files of users. Each file has a row in the database, and its content is an object in the store.

The row is committed before the object is written, and deleted after the object, so that no object is without a row.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, delete, insert, select, update

from app.accounts.quotas import count_rows, require_quota
from app.core.config.settings import Settings
from app.core.db.models import utc_now
from app.core.db.query import Command, Query, columns
from app.core.db.session import Database, Session, commit_and_release
from app.core.errors import NotFoundError, UnavailableError
from app.core.storage.objects import ObjectStore
from app.core.storage.store import create_store, require_store
from app.files.models import FileRecord, StoredFile

# How long the object of a deleted file is kept: a backup of the database may still refer to it, and the backup of the
# files that is made afterwards must contain it.
PURGE_DELAY = timedelta(days=1)
# Less than PURGE_DELAY, so that no upload writes an object after its row is purged.
UPLOAD_TIMEOUT = PURGE_DELAY / 2
# How long to wait before retrying the failed deletion of an object.
PURGE_RETRY_DELAY = timedelta(hours=1)
PURGE_BATCH_SIZE = 100

COLUMNS = columns(FileRecord, StoredFile)

# Deleted files count until they are purged, since their content still takes space.
ROWS = count_rows(select(StoredFile.id).where(StoredFile.owner_id == bindparam("owner")))
CREATE_FILE = Query(insert(StoredFile).returning(StoredFile.id))
KEEP_FILE = Query(
    update(StoredFile)
    .where(StoredFile.id == bindparam("file_id"), StoredFile.expires_at > bindparam("now"))
    .values(size=bindparam("new_size"), checksum=bindparam("new_checksum"), expires_at=None)
    .returning(*COLUMNS),
    FileRecord,
)
FILE_BY_ID = Query(
    select(*COLUMNS).where(StoredFile.id == bindparam("file_id"), StoredFile.expires_at.is_(None)), FileRecord
)
EXPIRE_FILE = Command(
    update(StoredFile)
    .where(StoredFile.id == bindparam("file_id"), StoredFile.expires_at.is_(None))
    .values(expires_at=bindparam("new_expires_at"))
)
EXPIRE_WITHOUT_OWNER = Command(
    update(StoredFile)
    .where(StoredFile.owner_id.is_(None), StoredFile.expires_at.is_(None))
    .values(expires_at=bindparam("new_expires_at"))
)
EXPIRED = Query(
    select(StoredFile.id)
    .where(StoredFile.expires_at <= bindparam("now"))
    .order_by(StoredFile.expires_at)
    .limit(bindparam("at_most"))
)
DELETE_FILE = Command(delete(StoredFile).where(StoredFile.id == bindparam("file_id")))
POSTPONE_FILE = Command(
    update(StoredFile).where(StoredFile.id == bindparam("file_id")).values(expires_at=bindparam("new_expires_at"))
)


@dataclass(frozen=True)
class SavedObject:
    """Content that `save` has written to the store; pass it to `keep` in the transaction that stores the file's id."""

    id: UUID
    size: int
    checksum: str


class _Meter:
    """Iterates over chunks, and computes their size and checksum."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self.size = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self.size += len(chunk)
            self._hash.update(chunk)
            yield chunk

    @property
    def checksum(self) -> str:
        return self._hash.hexdigest()


async def save(
    database: Database,
    store: ObjectStore,
    owner_id: UUID,
    *,
    filename: str,
    media_type: str,
    chunks: AsyncIterable[bytes],
) -> SavedObject:
    """Write a file's content, which is purged unless `keep` is called.

    Call with no open transaction, since the client may be slow. Raises ConflictError beyond the owner's quota,
    UnavailableError if the store fails, and the errors of `chunks`.
    """
    values = {"owner_id": owner_id, "filename": filename, "media_type": media_type}
    async with database.write() as session:
        await require_quota(session, ROWS, owner_id)
        (file_id,) = await session.fetch_one(CREATE_FILE, expires_at=utc_now() + PURGE_DELAY, **values)
    meter = _Meter(chunks)
    async with asyncio.timeout(UPLOAD_TIMEOUT.total_seconds()):
        await store.save(file_id, meter)
    return SavedObject(file_id, meter.size, meter.checksum)


async def keep(session: Session, saved: SavedObject) -> FileRecord:
    """Keep saved content as a file, in the transaction that stores the file's id: both are committed, or neither is."""
    file = await session.fetch_one_or_none(
        KEEP_FILE, file_id=saved.id, new_size=saved.size, new_checksum=saved.checksum, now=utc_now()
    )
    if file is None:
        raise NotFoundError("The upload has expired. Upload the file again.", code="upload-expired")
    return file


async def get_file(session: Session, file_id: UUID) -> FileRecord:
    """Return a file; the caller must check who may read it. Raises NotFoundError."""
    file = await session.fetch_one_or_none(FILE_BY_ID, file_id=file_id)
    if file is None:
        raise NotFoundError("File not found.", code="file-not-found")
    return file


async def delete_file(session: Session, file_id: UUID) -> None:
    """Delete a file; its content is purged after PURGE_DELAY."""
    await session.run(EXPIRE_FILE, file_id=file_id, new_expires_at=utc_now() + PURGE_DELAY)


def build_deletion(ids: Select[Any]) -> Command:
    """Build a command for `delete_files` that deletes the files whose ids a statement returns."""
    return Command(
        update(StoredFile)
        .where(StoredFile.id.in_(ids), StoredFile.expires_at.is_(None))
        .values(expires_at=bindparam("new_expires_at"))
    )


async def delete_files(session: Session, deletion: Command, **parameters: object) -> None:
    """Delete many files in one statement; see `delete_file`."""
    await session.run(deletion, new_expires_at=utc_now() + PURGE_DELAY, **parameters)


async def purge_files(session: Session, settings: Settings, at_most: int = PURGE_BATCH_SIZE) -> int:
    """Delete expired objects and then their rows; return the number of attempts.

    A file expires if it or its owner was deleted, or if `keep` was not called after its upload.
    """
    now = utc_now()
    await session.run(EXPIRE_WITHOUT_OWNER, new_expires_at=now + PURGE_DELAY)
    expired = await session.fetch_all(EXPIRED, now=now, at_most=at_most)
    await commit_and_release(session)
    if not expired:
        return 0
    store = require_store(create_store(settings))
    is_deleted = {file_id: await _try_to_delete(store, file_id) for (file_id,) in expired}
    for file_id, deleted in is_deleted.items():
        if deleted:
            await session.run(DELETE_FILE, file_id=file_id)
        else:
            await session.run(POSTPONE_FILE, file_id=file_id, new_expires_at=now + PURGE_RETRY_DELAY)
    return len(expired)


async def _try_to_delete(store: ObjectStore, file_id: UUID) -> bool:
    """Delete an object, and return whether it succeeded. The store logs failures, which must not stop the purge."""
    try:
        await store.delete(file_id)
    except UnavailableError:
        return False
    return True
