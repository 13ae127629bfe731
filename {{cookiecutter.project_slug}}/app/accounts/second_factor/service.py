"""Enrol, confirm and remove an authenticator app."""

import base64
import secrets
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from app.accounts.emails import AccountChange, notify_owner
from app.accounts.events import AccountEvent
from app.accounts.identity_cache import require_session
from app.accounts.models import Caller, Passkey, SecondFactor, UserRecord
from app.accounts.queries import lock_user
from app.accounts.second_factor.codes import (
    DELETE_CODES,
    FACTOR_TO_CONFIRM,
    INCORRECT_CODE,
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
from app.core.db.session import Session
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
# Deletes only an unconfirmed authenticator, since another request may have confirmed it meanwhile.
DELETE_UNCONFIRMED = Command(
    delete(SecondFactor).where(SecondFactor.user_id == bindparam("owner_id"), SecondFactor.confirmed_at.is_(None))
)
CHANGE_FACTOR = Command(update(SecondFactor).where(SecondFactor.user_id == bindparam("owner_id")))
ALL_FACTORS = Query(select(*columns(OwnedFactorRecord, SecondFactor)).with_for_update(), OwnedFactorRecord)
DELETE_PASSKEYS = Query(delete(Passkey).where(Passkey.user_id == bindparam("owner_id")).returning(Passkey.id))


async def begin(ctx: Context, caller: Caller, data: PasswordConfirmation) -> SecondFactorSecret:
    """Create a secret for an authenticator app, which `confirm` activates. Raises ConflictError."""
    user = caller.user
    await confirm_identity(ctx, caller, data)
    await lock_user(ctx.session, user.id)
    if await find_factor(ctx.session, user.id) is not None:
        raise ConflictError(
            "The account already has an authenticator app. Disable it first.", code="second-factor-exists"
        )
    await ctx.session.run(DELETE_UNCONFIRMED, owner_id=user.id)
    secret = base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode()
    try:
        await ctx.session.run(CREATE_FACTOR, user_id=user.id, secret=ctx.secret_box.encrypt(secret))
    except IntegrityError as error:
        raise ConflictError(
            "Another request has changed the second factor. Try again.", code="second-factor-changed"
        ) from error
    return SecondFactorSecret(
        secret=secret, uri=make_totp(secret).get_provisioning_uri(user.email, read_project().title)
    )


async def confirm(ctx: Context, caller: Caller, data: SecondFactorCode) -> RecoveryCodes:
    """Activate the authenticator app, and return recovery codes if it is the first second factor.

    Raises ConflictError if there is no app to confirm, and UnprocessableError for an incorrect code.
    """
    user = caller.user
    await ctx.throttle.commit_and_take(ctx.session, _confirmation_counter(ctx, user))
    await lock_user(ctx.session, user.id)
    await require_session(ctx.session, caller)
    factor = await ctx.session.fetch_one_or_none(FACTOR_TO_CONFIRM, owner_id=user.id)
    if factor is None or factor.confirmed_at is not None:
        raise ConflictError(
            "No authenticator app is being set up. Start the setup again, unless the account already has an app.",
            code="no-second-factor-to-confirm",
        )
    if not await use_totp(ctx, user.id, factor, data.code):
        raise UnprocessableError(INCORRECT_CODE, code="incorrect-code")
    codes = [] if await find_factors(ctx.session, user.id) else await make_recovery_codes(ctx.session, user.id)
    await ctx.session.run(CHANGE_FACTOR, owner_id=user.id, confirmed_at=utc_now())
    await ctx.audit.record(AccountEvent.SECOND_FACTOR_ENABLED, user.id, actor_id=user.id)
    await notify_owner(ctx, user.id, AccountChange.SECOND_FACTOR_ENABLED)
    await ctx.throttle.reset(ctx.session, _confirmation_counter(ctx, user))
    return RecoveryCodes(recovery_codes=codes)


def _confirmation_counter(ctx: Context, user: UserRecord) -> AttemptCounter:
    return AttemptCounter("second factor's confirmation", str(user.id), ctx.settings.throttle_account_attempts)


async def disable(ctx: Context, caller: Caller, data: PasswordConfirmation) -> None:
    """Remove the authenticator app; passkeys stay. Raises ConflictError if the account has no authenticator app."""
    user_id = caller.user.id
    await confirm_identity(ctx, caller, data)
    await lock_user(ctx.session, user_id)
    if await ctx.session.fetch_value(DELETE_FACTOR, owner_id=user_id) is None:
        raise ConflictError("The account has no authenticator app.", code="no-second-factor")
    await delete_unneeded_recovery_codes(ctx.session, user_id)
    await ctx.audit.record(AccountEvent.SECOND_FACTOR_DISABLED, user_id, actor_id=user_id)
    await notify_owner(ctx, user_id, AccountChange.SECOND_FACTOR_DISABLED)


async def delete_unneeded_recovery_codes(session: Session, user_id: UUID) -> None:
    """Delete the recovery codes if the account has no second factor any more."""
    if await find_factors(session, user_id) is None:
        await session.run(DELETE_CODES, owner_id=user_id)


async def remove(ctx: Context, user_id: UUID, *, actor_id: UUID | None = None) -> bool:
    """Remove authenticator and passkeys, and return whether the account had any; for a user who has lost them."""
    await lock_user(ctx.session, user_id)
    was_confirmed = await ctx.session.fetch_value(DELETE_FACTOR, owner_id=user_id) is not None
    passkeys = await ctx.session.fetch_all(DELETE_PASSKEYS, owner_id=user_id)
    await ctx.session.run(DELETE_CODES, owner_id=user_id)
    if was_confirmed or passkeys:
        await ctx.audit.record(AccountEvent.SECOND_FACTOR_DISABLED, user_id, actor_id=actor_id)
        await notify_owner(ctx, user_id, AccountChange.SECOND_FACTOR_DISABLED)
    return was_confirmed or bool(passkeys)


async def reencrypt(ctx: Context) -> int:
    """Re-encrypt all secrets with SECRET_KEY, and return their number."""
    factors = await ctx.session.fetch_all(ALL_FACTORS)
    for factor in factors:
        secret = ctx.secret_box.encrypt(ctx.secret_box.decrypt(factor.secret))
        await ctx.session.run(CHANGE_FACTOR, owner_id=factor.user_id, secret=secret)
    return len(factors)
