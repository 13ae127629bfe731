"""Secrets that are sent by mail: hashed at rest, short-lived, for one purpose and one use."""

from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Row, bindparam, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.config import Settings
from app.core.database import count_deleted
from app.core.exceptions import UnprocessableError
from app.core.models import utc_now
from app.core.security import create_opaque_token, hash_opaque_token
from app.core.statements import delete_some
from app.users.models import OneTimeToken

TokenRow: TypeAlias = Row[*tuple[Any, ...]]


class Purpose(StrEnum):
    VERIFY_EMAIL = "verify email"
    CHANGE_EMAIL = "change email"
    RESET_PASSWORD = "reset password"  # noqa: S105  # a name


LIFETIMES = {
    Purpose.VERIFY_EMAIL: timedelta(days=3),
    Purpose.CHANGE_EMAIL: timedelta(hours=24),
    Purpose.RESET_PASSWORD: timedelta(hours=1),
}
INVALID_TOKEN = "The code is not valid: it was used, has expired, or was never sent."  # noqa: S105  # a message

CREATE_TOKEN = insert(OneTimeToken)
VALID = (
    OneTimeToken.token_hash == bindparam("presented_hash"),
    OneTimeToken.purpose.in_(bindparam("purposes", expanding=True)),
    OneTimeToken.expires_at > bindparam("now"),
)
FIND_TOKEN = select(OneTimeToken.purpose, OneTimeToken.user_id, OneTimeToken.address).where(*VALID)
# One statement decides between two that come with the same token.
USE_TOKEN = delete(OneTimeToken).where(*VALID).returning(OneTimeToken.user_id)
REVOKE_TOKENS = delete(OneTimeToken).where(OneTimeToken.user_id == bindparam("owner_id"))
PURGE_TOKENS = delete_some(OneTimeToken, OneTimeToken.expires_at <= bindparam("now"))


async def create_token(session: AsyncSession, purpose: Purpose, user_id: UUID, address: str) -> str:
    """Earlier ones stay valid: the message that this one is for may be a repetition of one that did arrive."""
    token = create_opaque_token()
    values = {
        "token_hash": hash_opaque_token(token),
        "purpose": purpose,
        "user_id": user_id,
        "address": address,
        "expires_at": utc_now() + LIFETIMES[purpose],
    }
    await session.execute(CREATE_TOKEN, values)
    return token


async def find_token(session: AsyncSession, token: str, *purposes: Purpose) -> TokenRow:
    """Raises UnprocessableError."""
    return _require((await session.execute(FIND_TOKEN, _parameters(token, purposes))).one_or_none())


async def use_token(session: AsyncSession, token: str, *purposes: Purpose) -> None:
    """Raises UnprocessableError; of two that use the same token at once, one does."""
    _require((await session.execute(USE_TOKEN, _parameters(token, purposes))).one_or_none())


def _parameters(token: str, purposes: tuple[Purpose, ...]) -> dict[str, object]:
    return {"presented_hash": hash_opaque_token(token), "purposes": purposes, "now": utc_now()}


def _require(row: TokenRow | None) -> TokenRow:
    if row is None:
        raise UnprocessableError(INVALID_TOKEN)
    return row


async def revoke_tokens(session: AsyncSession, user_id: UUID) -> None:
    """What was sent before the password or the address changed must not undo the change."""
    await session.execute(REVOKE_TOKENS, {"owner_id": user_id})


async def purge_tokens(session: AsyncSession, _settings: Settings) -> int:
    """Delete expired tokens, and return how many there were."""
    return await count_deleted(session, PURGE_TOKENS, {"now": utc_now()})
