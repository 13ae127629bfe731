"""Codes that are sent by mail: hashed at rest, short-lived, for one purpose and one use.

A purpose is a text of at most 50 characters, which begins with the feature's name where it is not of accounts.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import Executable, bindparam, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.config import Settings
from app.core.database import count_deleted
from app.core.exceptions import UnprocessableError
from app.core.models import utc_now
from app.core.security import create_opaque_token, hash_opaque_token
from app.core.statements import delete_some
from app.users.models import OneTimeToken


class TokenRecord(NamedTuple):
    purpose: str
    # None where the code is for a person without an account.
    user_id: UUID | None
    address: str
    payload: dict[str, JsonValue]


INVALID_TOKEN = "The code is not valid: it was used, has expired, or was never sent."  # noqa: S105  # a message

CREATE_TOKEN = insert(OneTimeToken)
VALID = (
    OneTimeToken.token_hash == bindparam("presented_hash"),
    OneTimeToken.purpose.in_(bindparam("purposes", expanding=True)),
    OneTimeToken.expires_at > bindparam("now"),
)
TOKEN_COLUMNS = (OneTimeToken.purpose, OneTimeToken.user_id, OneTimeToken.address, OneTimeToken.payload)
FIND_TOKEN = select(*TOKEN_COLUMNS).where(*VALID)
# One statement decides between two that come with the same token.
USE_TOKEN = delete(OneTimeToken).where(*VALID).returning(*TOKEN_COLUMNS)
REVOKE_TOKENS = delete(OneTimeToken).where(OneTimeToken.user_id == bindparam("owner_id"))
PURGE_TOKENS = delete_some(OneTimeToken, OneTimeToken.expires_at <= bindparam("now"))


async def create_token(
    session: AsyncSession,
    purpose: str,
    user_id: UUID | None,
    address: str,
    *,
    lifetime: timedelta,
    payload: Mapping[str, JsonValue] | None = None,
) -> str:
    """Earlier codes stay valid: the message with this one may be a repetition of one that did arrive.

    The payload is stored as plain text, which backups contain: put no secret in it.
    """
    token = create_opaque_token()
    values = {
        "token_hash": hash_opaque_token(token),
        "purpose": purpose,
        "user_id": user_id,
        "address": address,
        "payload": {**(payload or {})},
        "expires_at": utc_now() + lifetime,
    }
    await session.execute(CREATE_TOKEN, values)
    return token


async def find_token(session: AsyncSession, token: str, *purposes: str) -> TokenRecord:
    """Raises UnprocessableError."""
    return await _fetch(session, FIND_TOKEN, token, purposes)


async def use_token(session: AsyncSession, token: str, *purposes: str) -> TokenRecord:
    """Raises UnprocessableError; of two that use the same token at once, one does."""
    return await _fetch(session, USE_TOKEN, token, purposes)


async def _fetch(session: AsyncSession, statement: Executable, token: str, purposes: tuple[str, ...]) -> TokenRecord:
    parameters = {"presented_hash": hash_opaque_token(token), "purposes": purposes, "now": utc_now()}
    row = (await session.execute(statement, parameters)).one_or_none()
    if row is None:
        raise UnprocessableError(INVALID_TOKEN)
    return TokenRecord(*row)


async def revoke_tokens(session: AsyncSession, user_id: UUID) -> None:
    """What was sent before the password or the address changed must not undo the change."""
    await session.execute(REVOKE_TOKENS, {"owner_id": user_id})


async def purge_tokens(session: AsyncSession, _settings: Settings) -> int:
    """Delete expired tokens, and return how many there were."""
    return await count_deleted(session, PURGE_TOKENS, {"now": utc_now()})
