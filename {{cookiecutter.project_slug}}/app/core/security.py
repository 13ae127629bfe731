"""The one door to passlib and python-jose: replacing either is a change to this file."""

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any
from uuid import UUID, uuid4

import anyio
import anyio.to_thread
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from fastapi import Depends, Request
from jose import jwk, jwt
from jose.exceptions import JOSEError
from passlib.context import CryptContext
from pydantic import BaseModel, ConfigDict

from app.core.config.settings import Settings
from app.core.exceptions import UnauthorizedError, UnavailableError
from app.core.passwords import normalize_password

ALGORITHM = "HS256"
# RFC 9068 §2.1: no other kind of token passes for an access token.
ACCESS_TOKEN_TYPE = "at+jwt"  # noqa: S105  # a media type
MAX_TOKEN_LENGTH = 4096
# The header is parsed before the signature is checked; one of this length cannot nest deeply enough to do harm.
MAX_HEADER_LENGTH = 512
LEEWAY_SECONDS = 10
# Some 10 MB in each worker at most.
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


@dataclass(frozen=True)
class PasswordCheck:
    is_correct: bool
    # A hash with today's parameters, where the stored one was made with others.
    new_hash: str | None = None


class Security:
    """Hash passwords, and sign and verify access tokens."""

    def __init__(self, settings: Settings, *, issuer: str) -> None:
        self._issuer = issuer
        self._lifetime = settings.access_token_lifetime_seconds
        # Built once: a bare string that happens to be JSON would be read as a key document.
        secret_keys = (settings.secret_key, *settings.secret_key_fallbacks)
        self._keys = [jwk.construct(key.get_secret_value(), ALGORITHM) for key in secret_keys]
        self._ciphers = MultiFernet([_derive_cipher(key.get_secret_value()) for key in secret_keys])
        self._passwords = CryptContext(
            schemes=["argon2"],
            argon2__time_cost=settings.password_hash_time_cost,
            argon2__memory_cost=settings.password_hash_memory_cost,
            argon2__parallelism=settings.password_hash_parallelism,
        )
        # A signature stays right for as long as the process has its key; a token's age is looked at every time.
        self._read = lru_cache(maxsize=REMEMBERED_TOKENS)(self._decode)
        # Of its own: hashing never takes the threads that others wait for, and its memory is bounded.
        self._limiter = anyio.CapacityLimiter(settings.password_hash_concurrency)
        queue = settings.password_hash_queue or settings.max_concurrent_requests // 4
        self._free_places = settings.password_hash_concurrency + queue

    @contextmanager
    def reserve_hash(self) -> Iterator[None]:
        """Reserve a place in the queue for hashing, before an attempt is counted; raises UnavailableError.

        Without a bound, requests that wait for a hash would take the places of all other requests.
        """
        if self._free_places == 0:
            raise UnavailableError("Too many requests check or set a password at the same time: try again.")
        self._free_places -= 1
        try:
            yield
        finally:
            self._free_places += 1

    async def hash_password(self, password: str) -> str:
        return await anyio.to_thread.run_sync(self._hash_password, password, limiter=self._limiter)

    def _hash_password(self, password: str) -> str:
        password_hash: str = self._passwords.hash(normalize_password(password))
        return password_hash

    async def check_password(self, password: str, password_hash: str | None) -> PasswordCheck:
        """Take as long for an unknown user, who has no hash, as for a known one."""
        return await anyio.to_thread.run_sync(self._check_password, password, password_hash, limiter=self._limiter)

    def _check_password(self, password: str, password_hash: str | None) -> PasswordCheck:
        if password_hash is None:
            self._passwords.dummy_verify()
            return PasswordCheck(is_correct=False)
        try:
            is_correct, new_hash = self._passwords.verify_and_update(normalize_password(password), password_hash)
        # Too long, or the stored hash is none of ours.
        except ValueError:
            self._passwords.dummy_verify()
            return PasswordCheck(is_correct=False)
        return PasswordCheck(is_correct, new_hash)

    def encrypt(self, secret: str) -> str:
        return self._ciphers.encrypt(secret.encode()).decode()

    def decrypt(self, encrypted: str) -> str:
        """Raises KeyError when none of the keys has encrypted it."""
        try:
            return self._ciphers.decrypt(encrypted).decode()
        except InvalidToken as error:
            raise KeyError("None of the secret keys has encrypted this.") from error

    def create_access_token(self, user_id: UUID, session_id: UUID, scope: str) -> str:
        now = int(time.time())
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

    def read_access_token(self, token: str) -> AccessClaims:
        """Return the claims of a valid access token; raises UnauthorizedError for anything else."""
        if len(token) > MAX_TOKEN_LENGTH or token.find(".") > MAX_HEADER_LENGTH:
            raise UnauthorizedError("The access token is not valid.")
        try:
            claims = self._read(token)
        # python-jose lets some of its own mistakes out with malformed input.
        except (JOSEError, RecursionError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UnauthorizedError("The access token is not valid.") from error
        if claims.exp < time.time() - LEEWAY_SECONDS:
            raise UnauthorizedError("The access token is not valid.")
        return claims

    def _decode(self, token: str) -> AccessClaims:
        payload: dict[str, Any] = jwt.decode(
            token,
            self._keys,  # type: ignore[arg-type]  # the stubs know no list of keys; python-jose tries each
            algorithms=[ALGORITHM],
            audience=self._issuer,
            issuer=self._issuer,
            options={**REQUIRED_CLAIMS, "leeway": LEEWAY_SECONDS},
        )
        header = jwt.get_unverified_header(token)
        if header.get("typ") != ACCESS_TOKEN_TYPE or "crit" in header:
            raise ValueError("is no access token of ours")
        claims = AccessClaims.model_validate(payload)
        if claims.iat > time.time() + LEEWAY_SECONDS:
            raise ValueError("was issued in the future")
        return claims


def _derive_cipher(secret_key: str) -> Fernet:
    """From a key of its own, so that what encrypts never signs."""
    key = HKDF(hashes.SHA256(), length=32, salt=None, info=b"encryption at rest").derive(secret_key.encode())
    return Fernet(base64.urlsafe_b64encode(key))


def create_opaque_token() -> str:
    """256 random bits, URL-safe."""
    return secrets.token_urlsafe(32)


def hash_opaque_token(token: str) -> str:
    """Fast on purpose: unlike a password it cannot be guessed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


async def get_security(request: Request) -> Security:
    security: Security = request.state.security
    return security


SecurityDep = Annotated[Security, Depends(get_security)]


async def hold_reserved_hash(security: SecurityDep) -> AsyncIterator[None]:
    with security.reserve_hash():
        yield


# For routes that hash a password after they have counted the attempt: name it before the dependency that counts.
reserve_hash = Depends(hold_reserved_hash, scope="function")
