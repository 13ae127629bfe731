import re
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, SecretStr, StringConstraints

from app.auth.exceptions import ErrorCode
from app.core.schemas import MAX_CODE_LENGTH, Email, Input, NewPassword, Output, normalize_code

# The default of authenticator apps; many ignore any other value.
DIGITS = 6
TOTP_CODE = re.compile("[0-9]" * DIGITS)


def _read_totp_code(typed: str) -> str:
    code = normalize_code(typed).replace("-", "")
    if not TOTP_CODE.fullmatch(code):
        raise ValueError(f"must be the {DIGITS}-digit code from the authenticator app")
    return code


class TokenForm(BaseModel):
    """RFC 6749 §4.3.2 and §6; parameters that are not known are ignored (§3.2)."""

    grant_type: str = ""
    username: str | None = None
    password: str | None = None
    refresh_token: str | None = None
    scope: str = ""
    # A code of the second factor, or a recovery code; an extension.
    otp: Annotated[str, AfterValidator(normalize_code)] | None = None


class RevocationForm(BaseModel):
    """RFC 7009 §2.1; the hint is not needed to tell the two kinds of tokens apart."""

    token: str = ""


class TokenRead(BaseModel):
    """RFC 6749 §5.1."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105  # RFC 6750
    expires_in: int
    refresh_token: str
    scope: str


class OAuthProblem(BaseModel):
    """RFC 6749 §5.2."""

    error: ErrorCode
    error_description: str


class SessionRead(Output):
    """A sign-in; `last_used_at`, `address` and `device` are those of the last time that it got new tokens."""

    id: UUID
    scope: str
    device: str
    address: str | None
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    is_current: bool


class PasswordConfirmation(Input):
    current_password: SecretStr


class SecondFactorSecret(BaseModel):
    """For an authenticator app: the URI as a QR code, or the secret to type."""

    secret: str
    uri: str


class SecondFactorCode(Input):
    code: Annotated[
        str,
        Field(max_length=MAX_CODE_LENGTH, description=f"{DIGITS} digits; spaces between them are ignored."),
        AfterValidator(_read_totp_code),
    ]


class RecoveryCodes(BaseModel):
    """Each signs in once in place of the authenticator's code."""

    recovery_codes: list[str]


class EmailAddress(Input):
    email: Email


class EmailToken(Input):
    # The code of a message.
    token: Annotated[str, StringConstraints(strip_whitespace=True, max_length=MAX_CODE_LENGTH)]


class PasswordReset(EmailToken):
    new_password: NewPassword
