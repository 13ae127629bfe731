"""Secrets that are sent by mail: hashed at rest, short-lived, for one purpose and one use."""

from datetime import timedelta
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select

from app.core.config import Settings
from app.core.database import Session
from app.core.exceptions import UnprocessableError
from app.core.models import utc_now
from app.core.query import Command, Query, columns, delete_batch
from app.core.security import create_opaque_token, hash_opaque_token
from app.users.models import OneTimeToken


class Purpose(StrEnum):
    VERIFY_EMAIL = "verify email"
    CHANGE_EMAIL = "change email"
    RESET_PASSWORD = "reset password"  # noqa: S105  # a name


class TokenRecord(NamedTuple):
    purpose: str
    user_id: UUID
    address: str


LIFETIMES = {
    Purpose.VERIFY_EMAIL: timedelta(days=3),
    Purpose.CHANGE_EMAIL: timedelta(hours=24),
    Purpose.RESET_PASSWORD: timedelta(hours=1),
}
INVALID_TOKEN = "The code is not valid: it was used, has expired, or was never sent."  # noqa: S105  # a message

CREATE_TOKEN = Command(insert(OneTimeToken))
VALID = (
    OneTimeToken.token_hash == bindparam("presented_hash"),
    OneTimeToken.purpose.in_(bindparam("purposes", expanding=True)),
    OneTimeToken.expires_at > bindparam("now"),
)
FIND_TOKEN = Query(select(*columns(TokenRecord, OneTimeToken)).where(*VALID), TokenRecord)
# One statement decides between two that come with the same token.
USE_TOKEN = Query(delete(OneTimeToken).where(*VALID).returning(*columns(TokenRecord, OneTimeToken)), TokenRecord)
REVOKE_TOKENS = Command(delete(OneTimeToken).where(OneTimeToken.user_id == bindparam("owner_id")))
PURGE_TOKENS = delete_batch(OneTimeToken, OneTimeToken.expires_at <= bindparam("now"))


async def create_token(session: Session, purpose: Purpose, user_id: UUID, address: str) -> str:
    """Earlier ones stay valid: the message that this one is for may be a repetition of one that did arrive."""
    token = create_opaque_token()
    await session.run(
        CREATE_TOKEN,
        token_hash=hash_opaque_token(token),
        purpose=purpose,
        user_id=user_id,
        address=address,
        expires_at=utc_now() + LIFETIMES[purpose],
    )
    return token


async def find_token(session: Session, token: str, *purposes: Purpose) -> TokenRecord:
    """Raises UnprocessableError."""
    found = await session.fetch_one_or_none(FIND_TOKEN, **_parameters(token, purposes))
    return _require(found)


async def use_token(session: Session, token: str, *purposes: Purpose) -> None:
    """Raises UnprocessableError; of two that use the same token at once, one does."""
    used = await session.fetch_one_or_none(USE_TOKEN, **_parameters(token, purposes))
    _require(used)


def _parameters(token: str, purposes: tuple[Purpose, ...]) -> dict[str, object]:
    return {"presented_hash": hash_opaque_token(token), "purposes": purposes, "now": utc_now()}


def _require(row: TokenRecord | None) -> TokenRecord:
    if row is None:
        raise UnprocessableError(INVALID_TOKEN)
    return row


async def revoke_tokens(session: Session, user_id: UUID) -> None:
    """What was sent before the password or the address changed must not undo the change."""
    await session.run(REVOKE_TOKENS, owner_id=user_id)


async def purge_tokens(session: Session, _settings: Settings) -> int:
    """Delete expired tokens, and return how many there were."""
    return await session.run(PURGE_TOKENS, now=utc_now())
