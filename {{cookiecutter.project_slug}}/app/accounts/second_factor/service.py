"""Time-based one-time passwords (RFC 6238), and recovery codes for who has lost the authenticator."""

import base64
import re
import secrets
import time
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor import InvalidToken
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from app.accounts.events import AccountEvent
from app.accounts.models import RecoveryCode, SecondFactor, UserRecord
from app.accounts.passwords.schemas import PasswordConfirmation
from app.accounts.passwords.service import confirm_password
from app.accounts.second_factor.schemas import DIGITS, TOTP_CODE, RecoveryCodes, SecondFactorCode, SecondFactorSecret
from app.accounts.users import service as users_service
from app.core.database import Session, release_connection
from app.core.exceptions import ConflictError, UnprocessableError
from app.core.models import utc_now
from app.core.project import read_project
from app.core.query import Command, Query, columns
from app.core.security import hash_opaque_token
from app.core.throttling import AttemptCounter
from app.core.toolbox import Toolbox

STEP_SECONDS = 30
SECRET_BYTES = 20
# One step to either side, for clocks that differ and people who type (RFC 6238 §5.2).
TOLERATED_STEPS = 1
RECOVERY_CODES = 10
# 80 bits, in four groups of four: cannot be guessed, and can be typed.
RECOVERY_CODE_BYTES = 10

WRONG_CODE = "The code is not right."


class FactorRecord(NamedTuple):
    secret: str
    confirmed_at: datetime | None


class OwnedFactorRecord(NamedTuple):
    user_id: UUID
    secret: str


_FACTOR = select(*columns(FactorRecord, SecondFactor)).where(SecondFactor.user_id == bindparam("owner_id"))
FACTOR = Query(_FACTOR, FactorRecord)
# Locked against another beginning, which would replace the secret between its check and its confirmation.
FACTOR_TO_CONFIRM = Query(_FACTOR.with_for_update(), FactorRecord)
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
# One statement decides between two that come with the same code.
USE_STEP = Query(
    update(SecondFactor)
    .where(SecondFactor.user_id == bindparam("owner_id"), SecondFactor.last_step < bindparam("used_step"))
    .values(last_step=bindparam("used_step"), secret=bindparam("new_secret"))
    .returning(SecondFactor.user_id)
)
CREATE_CODE = Command(insert(RecoveryCode))
DELETE_CODES = Command(delete(RecoveryCode).where(RecoveryCode.user_id == bindparam("owner_id")))
USE_CODE = Query(
    delete(RecoveryCode)
    .where(RecoveryCode.user_id == bindparam("owner_id"), RecoveryCode.code_hash == bindparam("used_hash"))
    .returning(RecoveryCode.user_id)
)


async def begin(tools: Toolbox, user: UserRecord, data: PasswordConfirmation) -> SecondFactorSecret:
    """Make a secret for the account's authenticator; it is asked for once it was confirmed."""
    await confirm_password(tools, user, data.current_password)
    await users_service.lock_user(tools.session, user.id)
    if await find_factor(tools.session, user.id) is not None:
        raise ConflictError("The account has a second factor: disable it first.")
    await tools.session.run(DELETE_UNCONFIRMED, owner_id=user.id)
    secret = base64.b32encode(secrets.token_bytes(SECRET_BYTES)).decode()
    try:
        await tools.session.run(CREATE_FACTOR, user_id=user.id, secret=tools.security.encrypt(secret))
    except IntegrityError as error:
        raise ConflictError("A second factor was begun or confirmed at the same time.") from error
    return SecondFactorSecret(secret=secret, uri=_totp(secret).get_provisioning_uri(user.email, read_project().title))


async def confirm(tools: Toolbox, user: UserRecord, data: SecondFactorCode) -> RecoveryCodes:
    """Take the second factor into use.

    Raises ConflictError when none waits for it, and UnprocessableError for a wrong code.
    """
    await release_connection(tools.session)
    await tools.throttle.count(_confirmation_counter(tools, user))
    await users_service.lock_user(tools.session, user.id)
    factor = await tools.session.fetch_one_or_none(FACTOR_TO_CONFIRM, owner_id=user.id)
    if factor is None or factor.confirmed_at is not None:
        raise ConflictError("No second factor waits for its confirmation.")
    if not await _use_totp(tools, user.id, factor, data.code):
        raise UnprocessableError(WRONG_CODE)
    await tools.session.run(CHANGE_FACTOR, owner_id=user.id, confirmed_at=utc_now())
    codes = [_make_recovery_code() for _ in range(RECOVERY_CODES)]
    for code in codes:
        await tools.session.run(CREATE_CODE, user_id=user.id, code_hash=hash_opaque_token(code))
    await tools.audit.record(AccountEvent.SECOND_FACTOR_ENABLED, user.id, actor_id=user.id)
    await tools.throttle.forget(tools.session, _confirmation_counter(tools, user))
    return RecoveryCodes(recovery_codes=["-".join(re.findall("....", code)) for code in codes])


def _confirmation_counter(tools: Toolbox, user: UserRecord) -> AttemptCounter:
    return AttemptCounter("second factor's confirmation", str(user.id), tools.settings.throttle_account_attempts)


async def disable(tools: Toolbox, user: UserRecord, data: PasswordConfirmation) -> None:
    await confirm_password(tools, user, data.current_password)
    if not await remove(tools, user.id, actor_id=user.id):
        raise ConflictError("The account has no second factor.")


async def remove(tools: Toolbox, user_id: UUID, *, actor_id: UUID | None = None) -> bool:
    """Return whether one was asked for. Also for operators, when a person has lost authenticator and recovery codes."""
    was_confirmed = await tools.session.fetch_value(DELETE_FACTOR, owner_id=user_id) is not None
    await tools.session.run(DELETE_CODES, owner_id=user_id)
    if was_confirmed:
        await tools.audit.record(AccountEvent.SECOND_FACTOR_DISABLED, user_id, actor_id=actor_id)
    return was_confirmed


async def reencrypt(tools: Toolbox) -> int:
    """Encrypt every secret with the key of today, and return how many there are."""
    factors = await tools.session.fetch_all(ALL_FACTORS)
    for factor in factors:
        secret = tools.security.encrypt(tools.security.decrypt(factor.secret))
        await tools.session.run(CHANGE_FACTOR, owner_id=factor.user_id, secret=secret)
    return len(factors)


async def find_factor(session: Session, user_id: UUID) -> FactorRecord | None:
    """Return the second factor that is asked for, if there is one."""
    factor = await session.fetch_one_or_none(FACTOR, owner_id=user_id)
    return factor if factor is not None and factor.confirmed_at is not None else None


async def use_code(tools: Toolbox, user_id: UUID, factor: FactorRecord, code: str) -> bool:
    """Take a normalized code of the authenticator or a recovery code; neither works a second time."""
    code = code.replace("-", "").upper()
    if TOTP_CODE.fullmatch(code):
        return await _use_totp(tools, user_id, factor, code)
    presented = hash_opaque_token(code)
    if await tools.session.fetch_value(USE_CODE, owner_id=user_id, used_hash=presented) is None:
        return False
    await tools.audit.record(AccountEvent.RECOVERY_CODE_USED, user_id, actor_id=user_id)
    return True


async def _use_totp(tools: Toolbox, user_id: UUID, factor: FactorRecord, code: str) -> bool:
    secret = tools.security.decrypt(factor.secret)
    step = _find_step(_totp(secret), code)
    if step is None:
        return False
    # Encrypted anew at each use: the key of today replaces its predecessors.
    new_secret = tools.security.encrypt(secret)
    return (
        await tools.session.fetch_value(USE_STEP, owner_id=user_id, used_step=step, new_secret=new_secret) is not None
    )


def _find_step(totp: TOTP, code: str) -> int | None:
    if not TOTP_CODE.fullmatch(code):
        return None
    now = int(time.time()) // STEP_SECONDS
    for step in range(now - TOLERATED_STEPS, now + TOLERATED_STEPS + 1):
        try:
            totp.verify(code.encode(), step * STEP_SECONDS)
        except InvalidToken:
            continue
        return step
    return None


def _totp(secret: str) -> TOTP:
    # SHA-1 as a MAC is sound, and what authenticator apps know.
    return TOTP(base64.b32decode(secret), DIGITS, SHA1(), STEP_SECONDS)  # noqa: S303  # see above


def _make_recovery_code() -> str:
    return base64.b32encode(secrets.token_bytes(RECOVERY_CODE_BYTES)).decode()
