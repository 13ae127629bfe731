from datetime import datetime

from app.core.schemas import Email, Identified, Input, Line, NewPassword, PartialInput


class UserCreate(Input):
    email: Email
    password: NewPassword
    name: Line = ""


class UserUpdate(PartialInput):
    """The fields that users can change of their own account."""

    name: Line = ""


class UserAdminUpdate(UserUpdate):
    """The fields that administrators can change of any account."""

    email: Email = ""
    is_active: bool = True
    is_admin: bool = False


class UserRead(Identified):
    email: str
    name: str
    is_active: bool
    is_admin: bool
    email_verified_at: datetime | None
