from typing import Annotated

from pydantic import SecretStr, StringConstraints

from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.http.schemas import MAX_CODE_LENGTH, EmailAddress, RequestModel
from app.core.security.schemas import NewPassword


class EmailRequest(RequestModel):
    email: EmailAddress


class EmailToken(RequestModel):
    # The code of a message.
    token: Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_CODE_LENGTH)]


class EmailVerification(EmailToken):
    # Of the sign-up that the message answers, or of the account that asked for it.
    password: SecretStr


class PasswordReset(EmailToken):
    new_password: NewPassword


class EmailChange(PasswordConfirmation):
    new_email: EmailAddress
