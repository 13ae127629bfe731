"""Time-based one-time passwords (RFC 6238), and recovery codes for a lost authenticator."""

import base64
import secrets
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from app.accounts.callers import require_session
from app.accounts.emails import AccountChange, notify_owner
from app.accounts.events import AccountEvent
from app.accounts.models import Caller, Passkey, SecondFactor, UserRecord
from app.accounts.queries import lock_user
from app.accounts.second_factor.codes import (
    DELETE_CODES,
    FACTOR_TO_CONFIRM,
    WRONG_CODE,
    find_factor,
    find_factors,
    make_recovery_codes,
    make_totp,
    use_totp,
)
from app.accounts.second_factor.confirmation import confirm_identity
from app.accounts.second_factor.schemas import PasswordConfirmation, RecoveryCodes, SecondFactorCode, SecondFactorSecret
from app.core.context import Context
from app.core.db.models import utc_now
from app.core.db.query import Command, Query, columns
from app.core.db.session import Session, release_connection
from app.core.errors import ConflictError, UnprocessableError
from app.core.project import read_project
from app.core.security.throttling import AttemptCounter

SECRET_BYTES = 20


class OwnedFactorRecord(NamedTuple):
    user_id: UUID
    secret: str


CREATE_FACTOR = Command(insert(SecondFactor))
DELETE_FACTOR = Query(
    delete(SecondFactor).where(SecondFactor.user_id == bindparam("owner_id")).returning(SecondFactor.confirmed_at)
)
# Never one that was confirmed in this moment.
DELETE_UNCONFIRMED = Command(
    delete(SecondFactor).where(SecondFactor.user_id == bindparam("owner_id"), SecondFactor.confirmed_at.is_(None))
)
CHANGE_FACTOR = Command(update(SecondFactor).where(SecondFactor.user_id == bindparam("owner_id")))
ALL_FACTORS = Query(select(*columns(OwnedFactorRecord, SecondFactor)).with_for_update(), OwnedFactorRecord)
DELETE_PASSKEYS = Query(delete(Passkey).where(Passkey.user_id == bindparam("owner_id")).returning(Passkey.id))


async def begin(ctx: Context, caller: Caller, data: PasswordConfirmation) -> SecondFactorSecret:
    """Make a secret for the account's authenticator; it is asked for once it was confirmed."""
    user = caller.user
    await confirm_identity(ctx, caller, data)
    await lock_user(ctx.session, user.id)
    if await find_factor(ctx.session, user.id) is not None:
        raise ConflictError("The account has a second factor: disable it first.")
    await ctx.session.run(DELETE_UNCONFIRMED, owner_id=user.id)
    secret = base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode()
    try:
        await ctx.session.run(CREATE_FACTOR, user_id=user.id, secret=ctx.secret_box.encrypt(secret))
    except IntegrityError as error:
        raise ConflictError("A second factor was begun or confirmed at the same time.") from error
    return SecondFactorSecret(
        secret=secret, uri=make_totp(secret).get_provisioning_uri(user.email, read_project().title)
    )


async def confirm(ctx: Context, caller: Caller, data: SecondFactorCode) -> RecoveryCodes:
    """Take the second factor into use.

    Raises ConflictError when none waits for it, and UnprocessableError for a wrong code.
    """
    user = caller.user
    await release_connection(ctx.session)
    await ctx.throttle.count(_confirmation_counter(ctx, user))
    await lock_user(ctx.session, user.id)
    await require_session(ctx.session, caller)
    factor = await ctx.session.fetch_one_or_none(FACTOR_TO_CONFIRM, owner_id=user.id)
    if factor is None or factor.confirmed_at is not None:
        raise ConflictError("No second factor waits for its confirmation.")
    if not await use_totp(ctx, user.id, factor, data.code):
        raise UnprocessableError(WRONG_CODE)
    codes = [] if await find_factors(ctx.session, user.id) else await make_recovery_codes(ctx.session, user.id)
    await ctx.session.run(CHANGE_FACTOR, owner_id=user.id, confirmed_at=utc_now())
    await ctx.audit.record(AccountEvent.SECOND_FACTOR_ENABLED, user.id, actor_id=user.id)
    await notify_owner(ctx, user.id, AccountChange.SECOND_FACTOR_ENABLED)
    await ctx.throttle.forget(ctx.session, _confirmation_counter(ctx, user))
    return RecoveryCodes(recovery_codes=codes)


def _confirmation_counter(ctx: Context, user: UserRecord) -> AttemptCounter:
    return AttemptCounter("second factor's confirmation", str(user.id), ctx.settings.throttle_account_attempts)


async def disable(ctx: Context, caller: Caller, data: PasswordConfirmation) -> None:
    """Forget the authenticator; passkeys stay."""
    user_id = caller.user.id
    await confirm_identity(ctx, caller, data)
    await lock_user(ctx.session, user_id)
    if await ctx.session.fetch_value(DELETE_FACTOR, owner_id=user_id) is None:
        raise ConflictError("The account has no second factor.")
    await settle_recovery_codes(ctx.session, user_id)
    await ctx.audit.record(AccountEvent.SECOND_FACTOR_DISABLED, user_id, actor_id=user_id)
    await notify_owner(ctx, user_id, AccountChange.SECOND_FACTOR_DISABLED)


async def settle_recovery_codes(session: Session, user_id: UUID) -> None:
    """They go with the last second factor."""
    if await find_factors(session, user_id) is None:
        await session.run(DELETE_CODES, owner_id=user_id)


async def remove(ctx: Context, user_id: UUID, *, actor_id: UUID | None = None) -> bool:
    """Remove authenticator and passkeys, for a person who has lost them all; return whether one was asked for."""
    await lock_user(ctx.session, user_id)
    was_confirmed = await ctx.session.fetch_value(DELETE_FACTOR, owner_id=user_id) is not None
    passkeys = await ctx.session.fetch_all(DELETE_PASSKEYS, owner_id=user_id)
    await ctx.session.run(DELETE_CODES, owner_id=user_id)
    if was_confirmed or passkeys:
        await ctx.audit.record(AccountEvent.SECOND_FACTOR_DISABLED, user_id, actor_id=actor_id)
        await notify_owner(ctx, user_id, AccountChange.SECOND_FACTOR_DISABLED)
    return was_confirmed or bool(passkeys)


async def reencrypt(ctx: Context) -> int:
    """Encrypt every secret with the key of today, and return how many there are."""
    factors = await ctx.session.fetch_all(ALL_FACTORS)
    for factor in factors:
        secret = ctx.secret_box.encrypt(ctx.secret_box.decrypt(factor.secret))
        await ctx.session.run(CHANGE_FACTOR, owner_id=factor.user_id, secret=secret)
    return len(factors)
