from datetime import datetime
from typing import Any
from uuid import UUID

from app.core.http.schemas import ResponseModel


class AuditEventRead(ResponseModel):
    """`user_id` is the account that it happened to, `actor_id` the one that did it, where that is known."""

    id: UUID
    event: str
    user_id: UUID | None
    actor_id: UUID | None
    address: str | None
    device: str
    request_id: str | None
    details: dict[str, Any]
    created_at: datetime
