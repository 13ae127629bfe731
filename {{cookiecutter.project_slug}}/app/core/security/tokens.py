"""Access tokens (JWT, RFC 9068) and opaque tokens; the only module that uses python-jose."""

import hashlib
import secrets
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from uuid import UUID, uuid4

from jose import jwk, jwt
from jose.exceptions import JOSEError
from pydantic import BaseModel, ConfigDict

from app.core.config.settings import Settings
from app.core.errors import UnauthorizedError
from app.core.project import read_project

ALGORITHM = "HS256"
# RFC 9068 §2.1: distinguishes access tokens from other kinds of tokens.
ACCESS_TOKEN_TYPE = "at+jwt"  # noqa: S105  # a media type
MAX_TOKEN_LENGTH = 4096
# The header is parsed before the signature is checked: within this length it cannot nest too deeply for the parser.
MAX_HEADER_LENGTH = 512
LEEWAY_SECONDS = 10
# Size of the cache of verified tokens, which takes at most about 10 MB per worker.
REMEMBERED_TOKENS = 4096
REQUIRED_CLAIMS = {f"require_{claim}": True for claim in ("aud", "exp", "iat", "iss", "jti", "sub")}


class AccessClaims(BaseModel):
    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    sub: UUID
    sid: UUID
    scope: str
    jti: str
    iat: int
    exp: int


class TokenSigner:
    """Signs access tokens with SECRET_KEY; also verifies tokens that were signed with SECRET_KEY_FALLBACKS.

    `clock` returns seconds since the epoch. At the first use of a token python-jose also reads the system's clock.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._issuer = read_project().name
        self._lifetime = settings.access_token_lifetime_seconds
        # Construct the keys: python-jose would parse a secret that happens to be valid JSON as a key document.
        secret_keys = (settings.secret_key, *settings.secret_key_fallbacks)
        self._keys = [jwk.construct(key.get_secret_value(), ALGORITHM) for key in secret_keys]
        # Safe to cache: invalid tokens raise an error, which is not cached, and `verify` checks the expiry at each use.
        self._cached_decode = lru_cache(maxsize=REMEMBERED_TOKENS)(self._decode)

    def sign(self, user_id: UUID, session_id: UUID, scope: str) -> str:
        now = int(self._clock())
        claims = {
            "iss": self._issuer,
            "aud": self._issuer,
            "sub": str(user_id),
            "sid": str(session_id),
            "scope": scope,
            "jti": uuid4().hex,
            "iat": now,
            "exp": now + self._lifetime,
        }
        return jwt.encode(claims, self._keys[0], ALGORITHM, headers={"typ": ACCESS_TOKEN_TYPE})

    def verify(self, token: str) -> AccessClaims:
        """Return the claims of a valid access token; raises UnauthorizedError for anything else."""
        if len(token) > MAX_TOKEN_LENGTH or token.find(".") > MAX_HEADER_LENGTH:
            raise UnauthorizedError("The access token is not valid. Refresh it, or sign in again.")
        try:
            claims = self._cached_decode(token)
        # For malformed input python-jose also raises errors other than JOSEError.
        except (JOSEError, RecursionError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UnauthorizedError("The access token is not valid. Refresh it, or sign in again.") from error
        if claims.exp < self._clock() - LEEWAY_SECONDS:
            raise UnauthorizedError("The access token is not valid. Refresh it, or sign in again.")
        return claims

    def _decode(self, token: str) -> AccessClaims:
        payload: dict[str, Any] = jwt.decode(
            token,
            self._keys,  # type: ignore[arg-type]  # the stubs lack lists of keys; python-jose tries each
            algorithms=[ALGORITHM],
            audience=self._issuer,
            issuer=self._issuer,
            options={**REQUIRED_CLAIMS, "leeway": LEEWAY_SECONDS},
        )
        header = jwt.get_unverified_header(token)
        if header.get("typ") != ACCESS_TOKEN_TYPE or "crit" in header:
            raise ValueError("is not an access token of this service")
        claims = AccessClaims.model_validate(payload)
        if claims.iat > self._clock() + LEEWAY_SECONDS:
            raise ValueError("was issued in the future")
        return claims


def create_opaque_token() -> str:
    """Return a random token of 256 bits, whose characters need no escaping in a URL."""
    return secrets.token_urlsafe(32)


def hash_opaque_token(token: str) -> str:
    """Return a fast hash, which suffices because the token has too much entropy to be guessed, unlike a password."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
