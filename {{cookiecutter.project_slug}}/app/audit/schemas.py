from datetime import datetime
from typing import Any
from uuid import UUID

from app.core.http.schemas import ResponseModel


class AuditEventRead(ResponseModel):
    """`user_id` is the affected account, `actor_id` the acting one, if known."""

    id: UUID
    event: str
    user_id: UUID | None
    actor_id: UUID | None
    address: str | None
    device: str
    request_id: str | None
    details: dict[str, Any]
    created_at: datetime
