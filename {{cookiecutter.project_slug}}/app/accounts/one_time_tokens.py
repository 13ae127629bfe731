"""One-time tokens: codes from e-mails, confirmation codes, and passkey challenges.

A token is stored as a hash, expires, and works once, for one purpose. A purpose has at most 50 characters. In other
features, purposes begin with the name of the feature, so that no two features use the same purpose.
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
    # None if the user is not known, as in the challenge of a sign-in with a passkey.
    user_id: UUID | None
    address: str
    payload: dict[str, JsonValue]


INVALID_TOKEN = "Invalid link or code: it was used, has expired, or was never sent. Request a new one."  # noqa: S105  # an error message, not a password

CREATE_TOKEN = Command(insert(OneTimeToken))
VALID = (
    OneTimeToken.token_hash == bindparam("presented_hash"),
    OneTimeToken.purpose.in_(bindparam("purposes", expanding=True)),
    OneTimeToken.expires_at > bindparam("now"),
)
FIND_TOKEN = Query(select(*columns(TokenRecord, OneTimeToken)).where(*VALID), TokenRecord)
# Atomic: of two concurrent requests with the same token, one gets the row.
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
    """Return a new token. Earlier tokens stay valid: if an e-mail is sent twice, the codes of both copies work.

    The payload is stored unencrypted, also in backups: it must not contain secrets.
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
    """Return the record of a token without using it up. Raises UnprocessableError if the token is invalid.

    The token is normalized first, because a person may have typed it.
    """
    return await _fetch(session, FIND_TOKEN, token, purposes)


async def use_token(session: Session, token: str, *purposes: str) -> TokenRecord:
    """Delete a token, and return its record. Raises UnprocessableError if the token is invalid.

    Of concurrent requests with the same token, only one gets the record.
    """
    return await _fetch(session, USE_TOKEN, token, purposes)


async def _fetch(session: Session, query: Query[TokenRecord], token: str, purposes: tuple[str, ...]) -> TokenRecord:
    found = await session.fetch_one_or_none(
        query, presented_hash=hash_opaque_token(normalize_code(token)), purposes=purposes, now=utc_now()
    )
    if found is None:
        raise UnprocessableError(INVALID_TOKEN, code="invalid-code")
    return found


async def revoke_tokens(session: Session, user_id: UUID) -> None:
    """Revoke all tokens of a user, so that none undoes a change of the password or the address."""
    await session.run(REVOKE_TOKENS, owner_id=user_id)


async def purge_tokens(session: Session, _settings: Settings) -> int:
    """Delete expired tokens, and return their number."""
    return await session.run(PURGE_TOKENS, now=utc_now())
