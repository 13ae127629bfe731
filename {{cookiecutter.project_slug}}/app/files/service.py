"""Files of users. A row is committed before its object is written, and deleted after it: no object is without a row."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.config import Settings
from app.core.database import Database, release_connection
from app.core.exceptions import NotFoundError
from app.core.models import utc_now
from app.core.storage import ObjectStore, create_store, require_store
from app.files.models import StoredFile

# No object is deleted sooner: every row in a backup of the database finds its object in the files' backup right after.
PURGE_DELAY = timedelta(days=1)
# Far less: what is purged has no upload any more that would write it.
UPLOAD_TIMEOUT = PURGE_DELAY / 2
PURGE_BATCH_SIZE = 100
MAX_FILENAME_LENGTH = 255
MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,127}/[A-Za-z0-9!#$&^_.+-]{1,127}")
DEFAULT_MEDIA_TYPE = "application/octet-stream"

FILE_COLUMNS = (
    StoredFile.id,
    StoredFile.owner_id,
    StoredFile.filename,
    StoredFile.media_type,
    StoredFile.size,
    StoredFile.checksum,
    StoredFile.created_at,
)

CREATE_FILE = insert(StoredFile).returning(StoredFile.id)
KEEP_FILE = (
    update(StoredFile)
    .where(StoredFile.id == bindparam("file_id"), StoredFile.expires_at > bindparam("now"))
    .values(size=bindparam("new_size"), checksum=bindparam("new_checksum"), expires_at=None)
    .returning(*FILE_COLUMNS)
)
FILE_BY_ID = select(*FILE_COLUMNS).where(StoredFile.id == bindparam("file_id"), StoredFile.expires_at.is_(None))
EXPIRE_FILE = (
    update(StoredFile)
    .where(StoredFile.id == bindparam("file_id"), StoredFile.expires_at.is_(None))
    .values(expires_at=bindparam("new_expires_at"))
)
EXPIRE_WITHOUT_OWNER = (
    update(StoredFile)
    .where(StoredFile.owner_id.is_(None), StoredFile.expires_at.is_(None))
    .values(expires_at=bindparam("new_expires_at"))
)
EXPIRED = (
    select(StoredFile.id)
    .where(StoredFile.expires_at <= bindparam("now"))
    .order_by(StoredFile.expires_at)
    .limit(PURGE_BATCH_SIZE)
)
DELETE_FILE = delete(StoredFile).where(StoredFile.id == bindparam("file_id"))


@dataclass(frozen=True)
class FileRecord:
    id: UUID
    owner_id: UUID | None
    filename: str
    media_type: str
    size: int
    checksum: str
    created_at: datetime


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
    values = {
        "owner_id": owner_id,
        "filename": clean_filename(filename),
        "media_type": clean_media_type(media_type),
        "expires_at": utc_now() + PURGE_DELAY,
    }
    async with database.write() as session:
        file_id: UUID = (await session.execute(CREATE_FILE, values)).scalar_one()
    meter = _Meter(chunks)
    async with asyncio.timeout(UPLOAD_TIMEOUT.total_seconds()):
        await store.save(file_id, meter)
    return SavedObject(file_id, meter.size, meter.checksum)


async def keep(session: AsyncSession, saved: SavedObject) -> FileRecord:
    """Make a file of what was saved, in the transaction that refers to it: one that fails leaves nothing behind."""
    parameters = {"file_id": saved.id, "new_size": saved.size, "new_checksum": saved.checksum, "now": utc_now()}
    row = (await session.execute(KEEP_FILE, parameters)).one_or_none()
    if row is None:
        raise NotFoundError("The upload has expired: upload the file again.")
    return FileRecord(*row)


async def get_file(session: AsyncSession, file_id: UUID) -> FileRecord:
    """Whoever calls it decides who may read the file."""
    row = (await session.execute(FILE_BY_ID, {"file_id": file_id})).one_or_none()
    if row is None:
        raise NotFoundError("There is no such file.")
    return FileRecord(*row)


async def delete_file(session: AsyncSession, file_id: UUID) -> None:
    """The file is gone at once, its content with a purge after PURGE_DELAY."""
    await session.execute(EXPIRE_FILE, {"file_id": file_id, "new_expires_at": utc_now() + PURGE_DELAY})


async def purge_files(session: AsyncSession, settings: Settings) -> int:
    """Delete what has expired, objects first, and return how many files that were.

    Expired are files that were deleted, those whose owner is gone, and those that were never kept.
    """
    now = utc_now()
    await session.execute(EXPIRE_WITHOUT_OWNER, {"new_expires_at": now + PURGE_DELAY})
    file_ids = (await session.execute(EXPIRED, {"now": now})).scalars().all()
    await release_connection(session)
    if file_ids:
        store = require_store(create_store(settings))
        for file_id in file_ids:
            await store.delete(file_id)
    for file_id in file_ids:
        await session.execute(DELETE_FILE, {"file_id": file_id})
    return len(file_ids)


def clean_filename(filename: str) -> str:
    """A name without folders and invisible characters, as it is suggested to whoever downloads the file."""
    name = "".join(filter(str.isprintable, re.split(r"[/\\]", filename)[-1])).strip()
    return name[:MAX_FILENAME_LENGTH] or "file"


def clean_media_type(media_type: str) -> str:
    """Without parameters; anything that is no media type becomes the general one."""
    essence = media_type.partition(";")[0].strip().lower()
    return essence if MEDIA_TYPE.fullmatch(essence) else DEFAULT_MEDIA_TYPE
