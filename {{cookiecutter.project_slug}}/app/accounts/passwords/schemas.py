from pydantic import BaseModel

from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.security.schemas import NewPassword


class PasswordChange(PasswordConfirmation):
    new_password: NewPassword


class ConfirmationRead(BaseModel):
    """For one request of the same session, within as many seconds."""

    confirmation: str
    expires_in: int
