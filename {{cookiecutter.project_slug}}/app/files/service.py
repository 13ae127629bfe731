"""Files of users. A row is committed before its object is written, and deleted after it: no object is without a row."""

import asyncio
import hashlib
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, delete, insert, select, update

from app.accounts.quotas import count_rows, require_quota
from app.core.config import Settings
from app.core.database import Database, Session, commit_and_release
from app.core.exceptions import NotFoundError, UnavailableError
from app.core.models import utc_now
from app.core.query import Command, Query, columns
from app.core.storage import ObjectStore, create_store, require_store
from app.files.models import FileRecord, StoredFile

# No object is deleted sooner: every row in a backup of the database finds its object in the files' backup right after.
PURGE_DELAY = timedelta(days=1)
# Far less, so that no upload writes an object when its row is purged.
UPLOAD_TIMEOUT = PURGE_DELAY / 2
# Until an object that could not be deleted is tried again.
PURGE_RETRY_DELAY = timedelta(hours=1)
PURGE_BATCH_SIZE = 100

COLUMNS = columns(FileRecord, StoredFile)

# Files that were deleted count until they are purged: their content still takes space.
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
    """What `save` has written, and `keep` makes a file of."""

    id: UUID
    size: int
    checksum: str


class _Meter:
    """Passes chunks on, and measures them."""

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
    """Write a file's content, which is purged unless `keep` makes a file of it.

    No database connection is held in the meantime, if the caller's session has none: release it before. Raises
    UnavailableError when the store does not work, and whatever `chunks` raises.
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
    """Make a file of what was saved, in the transaction that refers to it: one that fails leaves nothing behind."""
    file = await session.fetch_one_or_none(
        KEEP_FILE, file_id=saved.id, new_size=saved.size, new_checksum=saved.checksum, now=utc_now()
    )
    if file is None:
        raise NotFoundError("The upload has expired: upload the file again.")
    return file


async def get_file(session: Session, file_id: UUID) -> FileRecord:
    """Whoever calls it decides who may read the file."""
    file = await session.fetch_one_or_none(FILE_BY_ID, file_id=file_id)
    if file is None:
        raise NotFoundError("There is no such file.")
    return file


async def delete_file(session: Session, file_id: UUID) -> None:
    """The file is gone at once, its content with a purge after PURGE_DELAY."""
    await session.run(EXPIRE_FILE, file_id=file_id, new_expires_at=utc_now() + PURGE_DELAY)


def build_deletion(ids: Select[Any]) -> Command:
    """Build the command for `delete_files` that deletes all files with the ids that a statement returns."""
    return Command(
        update(StoredFile)
        .where(StoredFile.id.in_(ids), StoredFile.expires_at.is_(None))
        .values(expires_at=bindparam("new_expires_at"))
    )


async def delete_files(session: Session, deletion: Command, **parameters: object) -> None:
    """Delete many files in one statement, as `delete_file` does one."""
    await session.run(deletion, new_expires_at=utc_now() + PURGE_DELAY, **parameters)


async def purge_files(session: Session, settings: Settings, at_most: int = PURGE_BATCH_SIZE) -> int:
    """Delete expired objects and then their rows; return how many were tried.

    Files expire when they are deleted, when their owner is gone, and when they were never kept.
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
    """One object that cannot be deleted, which the store logs, must not keep the others from it."""
    try:
        await store.delete(file_id)
    except UnavailableError:
        return False
    return True
