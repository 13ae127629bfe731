from pydantic import BaseModel

from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.security.schemas import NewPassword


class PasswordChange(PasswordConfirmation):
    new_password: NewPassword


class ConfirmationRead(BaseModel):
    """A code that confirms one sensitive request of this session; it expires after `expires_in` seconds."""

    confirmation: str
    expires_in: int
