from typing import Annotated

from pydantic import SecretStr, StringConstraints

from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.http.schemas import MAX_CODE_LENGTH, EmailAddress, RequestModel
from app.core.security.schemas import NewPassword


class EmailRequest(RequestModel):
    email: EmailAddress


class EmailToken(RequestModel):
    token: Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_CODE_LENGTH)]


class EmailVerification(EmailToken):
    # The password of the sign-up or account that the message is for.
    password: SecretStr


class PasswordReset(EmailToken):
    new_password: NewPassword


class EmailChange(PasswordConfirmation):
    new_email: EmailAddress
