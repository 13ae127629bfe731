from typing import Any
from uuid import UUID

from sqlalchemy import JSON, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db.models import APPEND_ONLY, Base, IdMixin


class AuditEvent(IdMixin, Base):
    """An append-only row: triggers refuse updates, and the deletion of recent events.

    The row outlives the accounts that it names, so their ids are not foreign keys.
    """

    __tablename__ = "audit_events"
    __table_args__ = (
        Index(None, "created_at", "id"),
        Index(None, "user_id", "created_at", "id"),
        {"info": {APPEND_ONLY: True}},
    )

    event: Mapped[str] = mapped_column(String(50))
    # The affected account.
    user_id: Mapped[UUID | None]
    # The acting account; unknown for a failed sign-in.
    actor_id: Mapped[UUID | None]
    address: Mapped[str | None] = mapped_column(String(45))
    device: Mapped[str] = mapped_column(String(200))
    request_id: Mapped[str | None] = mapped_column(String(128))
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
