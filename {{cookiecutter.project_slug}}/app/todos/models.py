from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.accounts.models import User
from app.core.db.models import Base, TimestampMixin


class Todo(TimestampMixin, Base):
    __tablename__ = "todos"
    # For paginated lists of an owner's todos, in either order.
    __table_args__ = (Index(None, "owner_id", "created_at", "id"),)

    owner_id: Mapped[UUID] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(Text, default="")
    completed: Mapped[bool] = mapped_column(default=False)


class TodoRecord(NamedTuple):
    """The columns of a todo that the service reads."""

    id: UUID
    title: str
    description: str
    completed: bool
    created_at: datetime
    updated_at: datetime
