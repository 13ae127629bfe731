from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel

from app.accounts.scopes import Scope
from app.accounts.second_factor.passkeys import SentAssertion
from app.accounts.sign_in.exceptions import ErrorCode
from app.core.http.schemas import RequestModel, normalize_code


class TokenForm(BaseModel):
    """A request for tokens (RFC 6749 §4.3.2 and §6); unknown parameters are ignored (§3.2)."""

    grant_type: str = ""
    username: str | None = None
    password: str | None = None
    refresh_token: str | None = None
    scope: str = ""
    # Extension: a code of the second factor, or a recovery code.
    otp: Annotated[str, AfterValidator(normalize_code)] | None = None
    # Extension: the response of a passkey as JSON, instead of `otp`.
    passkey: SentAssertion | None = None


class PasskeySignIn(RequestModel):
    """Without `scope`, the session gets all scopes of the account."""

    credential: SentAssertion
    scope: frozenset[Scope] | None = None


class RevocationForm(BaseModel):
    """A request to revoke a token (RFC 7009 §2.1); `token_type_hint` is ignored, because it is not needed."""

    token: str = ""


class TokenRead(BaseModel):
    """New tokens of a session (RFC 6749 §5.1)."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105  # RFC 6750
    expires_in: int
    refresh_token: str
    scope: str


class OAuthProblem(BaseModel):
    """An error in the OAuth format (RFC 6749 §5.2)."""

    error: ErrorCode
    error_description: str
