from datetime import datetime
from uuid import UUID

from app.core.http.schemas import ResponseModel


class SessionRead(ResponseModel):
    """A session; `last_used_at`, `address` and `device` are those of its latest sign-in or token refresh."""

    id: UUID
    scope: str
    device: str
    address: str | None
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    is_current: bool
