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
from app.core.database import Session
from app.core.exceptions import ConflictError, UnprocessableError
from app.core.models import utc_now
from app.core.project import read_project
from app.core.query import Command, Query, columns
from app.core.throttling import AttemptCounter
from app.core.toolbox import Toolbox

SECRET_BYTES = 20


class OwnedFactorRecord(NamedTuple):
    user_id: UUID
    secret: str


CREATE_FACTOR = Command(insert(SecondFactor))
DELETE_FACTOR = Query(
    delete(SecondFactor).where(SecondFactor.user_id == bindparam("owner_id")).returning(SecondFactor.confirmed_at)
)
# Not one that another request has confirmed meanwhile.
DELETE_UNCONFIRMED = Command(
    delete(SecondFactor).where(SecondFactor.user_id == bindparam("owner_id"), SecondFactor.confirmed_at.is_(None))
)
CHANGE_FACTOR = Command(update(SecondFactor).where(SecondFactor.user_id == bindparam("owner_id")))
ALL_FACTORS = Query(select(*columns(OwnedFactorRecord, SecondFactor)).with_for_update(), OwnedFactorRecord)
DELETE_PASSKEYS = Query(delete(Passkey).where(Passkey.user_id == bindparam("owner_id")).returning(Passkey.id))


async def begin(tools: Toolbox, caller: Caller, data: PasswordConfirmation) -> SecondFactorSecret:
    """Create a secret for an authenticator app, which `confirm` activates. Raises ConflictError."""
    user = caller.user
    await confirm_identity(tools, caller, data)
    await lock_user(tools.session, user.id)
    if await find_factor(tools.session, user.id) is not None:
        raise ConflictError(
            "The account has an authenticator app already. Disable it first.", code="second-factor-exists"
        )
    await tools.session.run(DELETE_UNCONFIRMED, owner_id=user.id)
    secret = base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode()
    try:
        await tools.session.run(CREATE_FACTOR, user_id=user.id, secret=tools.security.encrypt(secret))
    except IntegrityError as error:
        raise ConflictError(
            "Another request has changed the second factor. Try again.", code="second-factor-changed"
        ) from error
    return SecondFactorSecret(
        secret=secret, uri=make_totp(secret).get_provisioning_uri(user.email, read_project().title)
    )


async def confirm(tools: Toolbox, caller: Caller, data: SecondFactorCode) -> RecoveryCodes:
    """Activate the authenticator app, and return recovery codes if it is the first second factor.

    Raises ConflictError if there is none to confirm, and UnprocessableError for an incorrect code.
    """
    user = caller.user
    await tools.throttle.commit_and_take(tools.session, _confirmation_counter(tools, user))
    await lock_user(tools.session, user.id)
    await require_session(tools.session, caller)
    factor = await tools.session.fetch_one_or_none(FACTOR_TO_CONFIRM, owner_id=user.id)
    if factor is None or factor.confirmed_at is not None:
        raise ConflictError("There is no second factor to confirm.", code="no-second-factor-to-confirm")
    if not await use_totp(tools, user.id, factor, data.code):
        raise UnprocessableError(INCORRECT_CODE, code="incorrect-code")
    codes = [] if await find_factors(tools.session, user.id) else await make_recovery_codes(tools.session, user.id)
    await tools.session.run(CHANGE_FACTOR, owner_id=user.id, confirmed_at=utc_now())
    await tools.audit.record(AccountEvent.SECOND_FACTOR_ENABLED, user.id, actor_id=user.id)
    await notify_owner(tools, user.id, AccountChange.SECOND_FACTOR_ENABLED)
    await tools.throttle.reset(tools.session, _confirmation_counter(tools, user))
    return RecoveryCodes(recovery_codes=codes)


def _confirmation_counter(tools: Toolbox, user: UserRecord) -> AttemptCounter:
    return AttemptCounter("second factor's confirmation", str(user.id), tools.settings.throttle_account_attempts)


async def disable(tools: Toolbox, caller: Caller, data: PasswordConfirmation) -> None:
    """Remove the authenticator; passkeys stay. Raises ConflictError if there is none."""
    user_id = caller.user.id
    await confirm_identity(tools, caller, data)
    await lock_user(tools.session, user_id)
    if await tools.session.fetch_value(DELETE_FACTOR, owner_id=user_id) is None:
        raise ConflictError("The account has no second factor.", code="no-second-factor")
    await delete_unneeded_recovery_codes(tools.session, user_id)
    await tools.audit.record(AccountEvent.SECOND_FACTOR_DISABLED, user_id, actor_id=user_id)
    await notify_owner(tools, user_id, AccountChange.SECOND_FACTOR_DISABLED)


async def delete_unneeded_recovery_codes(session: Session, user_id: UUID) -> None:
    """Delete the recovery codes if the account has no second factor any more."""
    if await find_factors(session, user_id) is None:
        await session.run(DELETE_CODES, owner_id=user_id)


async def remove(tools: Toolbox, user_id: UUID, *, actor_id: UUID | None = None) -> bool:
    """Remove authenticator and passkeys, and return whether the account had any; for a user who has lost them."""
    await lock_user(tools.session, user_id)
    was_confirmed = await tools.session.fetch_value(DELETE_FACTOR, owner_id=user_id) is not None
    passkeys = await tools.session.fetch_all(DELETE_PASSKEYS, owner_id=user_id)
    await tools.session.run(DELETE_CODES, owner_id=user_id)
    if was_confirmed or passkeys:
        await tools.audit.record(AccountEvent.SECOND_FACTOR_DISABLED, user_id, actor_id=actor_id)
        await notify_owner(tools, user_id, AccountChange.SECOND_FACTOR_DISABLED)
    return was_confirmed or bool(passkeys)


async def reencrypt(tools: Toolbox) -> int:
    """Re-encrypt all secrets with SECRET_KEY, and return their number."""
    factors = await tools.session.fetch_all(ALL_FACTORS)
    for factor in factors:
        secret = tools.security.encrypt(tools.security.decrypt(factor.secret))
        await tools.session.run(CHANGE_FACTOR, owner_id=factor.user_id, secret=secret)
    return len(factors)
