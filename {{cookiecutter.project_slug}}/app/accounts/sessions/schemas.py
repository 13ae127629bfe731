from datetime import datetime
from uuid import UUID

from app.core.http.schemas import ResponseModel


class SessionRead(ResponseModel):
    """A sign-in; `last_used_at`, `address` and `device` are those of the last time that it got new tokens."""

    id: UUID
    scope: str
    device: str
    address: str | None
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    is_current: bool
