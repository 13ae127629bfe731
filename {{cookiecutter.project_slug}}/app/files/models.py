from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from app.accounts.models import User
from app.core.db.models import Base, IdMixin


class StoredFile(IdMixin, Base):
    """A user's file; its content is the object with the same id in the store (app/core/storage/store.py)."""

    __tablename__ = "stored_files"

    # NULL once the account is deleted; the row stays until the object is deleted.
    owner_id: Mapped[UUID | None] = mapped_column(ForeignKey(User.id, ondelete="SET NULL"), index=True)
    filename: Mapped[str] = mapped_column(String(255))
    media_type: Mapped[str] = mapped_column(String(255))
    size: Mapped[int] = mapped_column(BigInteger, default=0)
    # SHA-256 in hexadecimal.
    checksum: Mapped[str] = mapped_column(String(64), default="")
    # When the object and this row are purged; NULL for a file that is kept.
    expires_at: Mapped[datetime | None] = mapped_column(index=True)


class FileRecord(NamedTuple):
    id: UUID
    owner_id: UUID | None
    filename: str
    media_type: str
    size: int
    checksum: str
    created_at: datetime
