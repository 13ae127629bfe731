import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, SecretStr
from pydantic_core import PydanticCustomError

from app.accounts.second_factor.passkeys import SentAssertion
from app.core.http.schemas import MAX_CODE_LENGTH, RequestModel, normalize_code

# Many authenticator apps support only this number.
DIGITS = 6
TOTP_CODE = re.compile("[0-9]" * DIGITS)


def _read_totp_code(typed: str) -> str:
    code = normalize_code(typed).replace("-", "")
    if not TOTP_CODE.fullmatch(code):
        raise PydanticCustomError(
            "totp_code", "must be the {digits}-digit code from the authenticator app", {"digits": DIGITS}
        )
    return code


class PasswordConfirmation(RequestModel):
    """The password and, if the account has a second factor, a code or the response of a passkey."""

    current_password: SecretStr
    otp: Annotated[str, Field(max_length=MAX_CODE_LENGTH), AfterValidator(normalize_code)] | None = None
    passkey: SentAssertion | None = None


class SecondFactorSecret(BaseModel):
    """A secret for an authenticator app: show `uri` as a QR code, or let the user type `secret`."""

    secret: str
    uri: str


class SecondFactorCode(RequestModel):
    code: Annotated[
        str,
        Field(max_length=MAX_CODE_LENGTH, description=f"{DIGITS} digits; spaces between them are ignored."),
        AfterValidator(_read_totp_code),
    ]


class RecoveryCodes(BaseModel):
    """Each code replaces the second factor once. The list is empty if the account already has recovery codes."""

    recovery_codes: list[str]
