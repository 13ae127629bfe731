from datetime import datetime

from app.core.http.schemas import EmailAddress, PatchModel, RequestModel, SingleLine, TimestampedModel
from app.core.security.schemas import NewPassword


class UserCreate(RequestModel):
    email: EmailAddress
    password: NewPassword
    name: SingleLine = ""


class UserUpdate(PatchModel):
    """The fields that users can change of their own account."""

    name: SingleLine = ""


class UserAdminUpdate(UserUpdate):
    """The fields that administrators can change of any account."""

    email: EmailAddress = ""
    is_active: bool = True
    is_admin: bool = False


class UserRead(TimestampedModel):
    email: str
    name: str
    is_active: bool
    is_admin: bool
    email_verified_at: datetime | None
