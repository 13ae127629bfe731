"""Refresh tokens: issued with each access token, exchanged once for new ones, and revoked with their session."""

from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from app.accounts.events import AccountEvent
from app.accounts.models import RefreshToken
from app.accounts.sessions import service as sessions
from app.accounts.sign_in.exceptions import OAuthError
from app.accounts.sign_in.granted_scopes import grant_scope, narrow_scope
from app.accounts.sign_in.schemas import TokenForm, TokenRead
from app.core.context import Context
from app.core.db.models import utc_now
from app.core.db.query import Command, Query, columns
from app.core.errors import UnauthorizedError
from app.core.security.tokens import create_opaque_token, hash_opaque_token

INVALID_REFRESH_TOKEN = "Invalid refresh token: it was used, has expired, or was never issued. Sign in again."  # noqa: S105  # an error message, not a password


class RefreshTokenRecord(NamedTuple):
    session_id: UUID
    used_at: datetime | None


CREATE_REFRESH_TOKEN = Command(insert(RefreshToken))
# Atomic: of two concurrent requests with the same token, one gets the row.
USE_REFRESH_TOKEN = Query(
    update(RefreshToken)
    .where(RefreshToken.token_hash == bindparam("presented_hash"), RefreshToken.used_at.is_(None))
    .values(used_at=bindparam("now"))
    .returning(RefreshToken.session_id)
)
REFRESH_TOKEN = Query(
    select(*columns(RefreshTokenRecord, RefreshToken)).where(RefreshToken.token_hash == bindparam("presented_hash")),
    RefreshTokenRecord,
)
# A used token is kept for at least REFRESH_TOKEN_LIFETIME_SECONDS, to detect that a stolen copy is used.
PURGE_REFRESH_TOKENS = Command(
    delete(RefreshToken).where(
        RefreshToken.session_id == bindparam("of_session_id"), RefreshToken.used_at < bindparam("used_before")
    )
)


async def refresh(ctx: Context, form: TokenForm) -> TokenRead:
    """Exchange a refresh token for new tokens. A token that is used again may be stolen: its session ends."""
    if not form.refresh_token:
        raise OAuthError("invalid_request", "The parameter refresh_token is missing.")
    now = utc_now()
    presented_hash = hash_opaque_token(form.refresh_token)
    token = await ctx.session.fetch_one_or_none(REFRESH_TOKEN, presented_hash=presented_hash)
    if token is None or token.used_at is not None:
        raise await _refuse_refresh_token(ctx, token, now)
    # Lock order: session, then tokens, as in end_session. The reverse order deadlocks.
    extended = await sessions.extend_session(ctx.session, ctx.settings, token.session_id, ctx.client)
    if extended is None:
        raise OAuthError("invalid_grant", INVALID_REFRESH_TOKEN, code="invalid-refresh-token")
    if await ctx.session.fetch_value(USE_REFRESH_TOKEN, presented_hash=presented_hash, now=now) is None:
        token = await ctx.session.fetch_one_or_none(REFRESH_TOKEN, presented_hash=presented_hash)
        raise await _refuse_refresh_token(ctx, token, now)
    used_before = now - timedelta(seconds=ctx.settings.refresh_token_lifetime_seconds)
    await ctx.session.run(PURGE_REFRESH_TOKENS, of_session_id=token.session_id, used_before=used_before)
    scope = grant_scope(form.scope, await narrow_scope(ctx, extended.user_id, extended.scope))
    return await issue(ctx, extended.user_id, token.session_id, scope)


async def _refuse_refresh_token(ctx: Context, token: RefreshTokenRecord | None, now: datetime) -> OAuthError:
    if token is None or token.used_at is None:
        return OAuthError("invalid_grant", INVALID_REFRESH_TOKEN, code="invalid-refresh-token")
    if now - token.used_at <= timedelta(seconds=ctx.settings.refresh_reuse_grace_seconds):
        # Keep the session: the client has probably lost the response, or sent two concurrent requests.
        return OAuthError("invalid_grant", INVALID_REFRESH_TOKEN, code="invalid-refresh-token")
    await sessions.end_session(ctx.session, ctx.audit, token.session_id, AccountEvent.REFRESH_TOKEN_REUSED)
    return OAuthError("invalid_grant", INVALID_REFRESH_TOKEN, code="invalid-refresh-token", commit_anyway=True)


async def issue(ctx: Context, user_id: UUID, session_id: UUID, scope: str) -> TokenRead:
    refresh_token = create_opaque_token()
    token_hash = hash_opaque_token(refresh_token)
    try:
        await ctx.session.run(CREATE_REFRESH_TOKEN, session_id=session_id, token_hash=token_hash)
    except IntegrityError as error:
        # The session was ended meanwhile.
        raise OAuthError("invalid_grant", INVALID_REFRESH_TOKEN, code="invalid-refresh-token") from error
    return TokenRead(
        access_token=ctx.tokens.sign(user_id, session_id, scope),
        expires_in=ctx.settings.access_token_lifetime_seconds,
        refresh_token=refresh_token,
        scope=scope,
    )


async def revoke(ctx: Context, token: str) -> None:
    """End the session of an access or refresh token; an unknown one is no error (RFC 7009 §2.2)."""
    if not token:
        raise OAuthError("invalid_request", "The parameter token is missing.")
    found = await ctx.session.fetch_one_or_none(REFRESH_TOKEN, presented_hash=hash_opaque_token(token))
    if found is not None:
        session_id = found.session_id
    else:
        try:
            session_id = ctx.tokens.verify(token).sid
        except UnauthorizedError:
            return
    await sessions.end_session(ctx.session, ctx.audit, session_id)
