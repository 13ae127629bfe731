"""Codes that are sent by mail, or answered to somebody who has shown the password.

They are hashed at rest, short-lived, for one purpose and one use.

A purpose is a text of at most 50 characters, which begins with the feature's name where it is not of accounts.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import bindparam, delete, insert, select

from app.accounts.models import OneTimeToken
from app.core.config.settings import Settings
from app.core.db.models import utc_now
from app.core.db.query import Command, Query, columns, delete_batch
from app.core.db.session import Session
from app.core.errors import UnprocessableError
from app.core.http.schemas import normalize_code
from app.core.security.tokens import create_opaque_token, hash_opaque_token


class TokenRecord(NamedTuple):
    purpose: str
    # None where the code is for a person without an account.
    user_id: UUID | None
    address: str
    payload: dict[str, JsonValue]


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


async def create_token(
    session: Session,
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
    await session.run(
        CREATE_TOKEN,
        token_hash=hash_opaque_token(token),
        purpose=purpose,
        user_id=user_id,
        address=address,
        payload={**(payload or {})},
        expires_at=utc_now() + lifetime,
    )
    return token


async def find_token(session: Session, token: str, *purposes: str) -> TokenRecord:
    """Find a code as a person has copied it. Raises UnprocessableError."""
    return await _fetch(session, FIND_TOKEN, token, purposes)


async def use_token(session: Session, token: str, *purposes: str) -> TokenRecord:
    """Raises UnprocessableError; of two that use the same token at once, one does."""
    return await _fetch(session, USE_TOKEN, token, purposes)


async def _fetch(session: Session, query: Query[TokenRecord], token: str, purposes: tuple[str, ...]) -> TokenRecord:
    found = await session.fetch_one_or_none(
        query, presented_hash=hash_opaque_token(normalize_code(token)), purposes=purposes, now=utc_now()
    )
    if found is None:
        raise UnprocessableError(INVALID_TOKEN)
    return found


async def revoke_tokens(session: Session, user_id: UUID) -> None:
    """What was sent before the password or the address changed must not undo the change."""
    await session.run(REVOKE_TOKENS, owner_id=user_id)


async def purge_tokens(session: Session, _settings: Settings) -> int:
    """Delete expired tokens, and return how many there were."""
    return await session.run(PURGE_TOKENS, now=utc_now())
