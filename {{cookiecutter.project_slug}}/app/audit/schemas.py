from datetime import datetime
from typing import Any
from uuid import UUID

from app.core.http.schemas import ResponseModel


class AuditEventRead(ResponseModel):
    """`user_id` is the account that the event affects, `actor_id` the account that caused it; null if unknown."""

    id: UUID
    event: str
    user_id: UUID | None
    actor_id: UUID | None
    address: str | None
    device: str
    request_id: str | None
    details: dict[str, Any]
    created_at: datetime
