from datetime import datetime
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import JSON, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.models import Base, IdMixin


class OutgoingEmail(IdMixin, Base):
    """An e-mail to send. The row is deleted once the e-mail is sent."""

    __tablename__ = "outgoing_emails"

    kind: Mapped[str] = mapped_column(String(50))
    address: Mapped[str] = mapped_column(String(254))
    # No foreign key: a notice may be sent after its account is deleted.
    account_id: Mapped[UUID | None]
    payload: Mapped[dict[str, JsonValue]] = mapped_column(JSON, default=dict)
    attempts: Mapped[int] = mapped_column(default=0)
    # The time of the next attempt; during an attempt, the end of the lease; NULL if the e-mail has failed for good.
    due_at: Mapped[datetime | None] = mapped_column(index=True)
    error: Mapped[str] = mapped_column(Text, default="")
