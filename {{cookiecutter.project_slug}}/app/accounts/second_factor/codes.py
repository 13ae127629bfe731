"""The codes that a second factor takes: of an authenticator (TOTP, RFC 6238), and recovery codes."""

import base64
import re
import secrets
import time
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import NamedTuple
from uuid import UUID

import structlog
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor import InvalidToken
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from app.accounts.emails import EmailKind
from app.accounts.events import AccountEvent
from app.accounts.models import RecoveryCode, SecondFactor, SecondFactorFailures
from app.accounts.queries import RESET_FAILURES
from app.accounts.second_factor.passkeys import PasskeyAssertion, PasskeyRefusedError, has_passkey, use_passkey
from app.accounts.second_factor.schemas import DIGITS, TOTP_CODE
from app.core.database import Session
from app.core.query import Command, Query, columns
from app.core.security import hash_opaque_token
from app.core.toolbox import Toolbox
from app.outbox import service as outbox_service

logger = structlog.get_logger(__name__)

STEP_SECONDS = 30
# One step to either side, for clocks that differ and people who type (RFC 6238 §5.2).
TOLERATED_STEPS = 1
RECOVERY_CODES = 10
# 80 bits, in four groups of four: cannot be guessed, and can be typed.
RECOVERY_CODE_BYTES = 10

# Failures in a row after which the owner is told, and after which codes are refused until the password is changed or
# reset. NIST SP 800-63B (3.2.2) allows at most 100.
NOTICE_FAILURES, MAX_FAILURES = 5, 50

INCORRECT_CODE = "The code is not right."


class FactorCheck(Enum):
    CORRECT = auto()
    INCORRECT = auto()
    # Nothing was sent: the first step of a sign-in.
    MISSING = auto()
    # Nothing was sent, too often in a row to be a first step.
    MISSING_AGAIN = auto()


class FactorRecord(NamedTuple):
    secret: str
    confirmed_at: datetime | None


class Factors(NamedTuple):
    """What an account asks for besides the password."""

    authenticator: FactorRecord | None
    has_passkey: bool


class Owner(NamedTuple):
    id: UUID
    email: str


@dataclass(frozen=True)
class Proof:
    """What was sent besides the password: a normalized code, or what a passkey has answered."""

    otp: str | None
    passkey: PasskeyAssertion | None
    # The values of `bound_to` whose challenges the passkey may answer.
    bound_to: tuple[str, ...] = ()

    @property
    def is_given(self) -> bool:
        return bool(self.otp) or self.passkey is not None


_FACTOR = select(*columns(FactorRecord, SecondFactor)).where(SecondFactor.user_id == bindparam("owner_id"))
FACTOR = Query(_FACTOR, FactorRecord)
# Locked against another beginning, which would replace the secret between its check and its confirmation.
FACTOR_TO_CONFIRM = Query(_FACTOR.with_for_update(), FactorRecord)
# One statement decides between two that come with the same code.
USE_STEP = Query(
    update(SecondFactor)
    .where(SecondFactor.user_id == bindparam("owner_id"), SecondFactor.last_step < bindparam("used_step"))
    .values(last_step=bindparam("used_step"), secret=bindparam("new_secret"))
    .returning(SecondFactor.user_id)
)
# One atomic statement: it locks the row, so that concurrent guesses wait for the outcome.
COUNT_FAILURE = Query(
    upsert(SecondFactorFailures)
    .values(user_id=bindparam("owner_id"), failures=1)
    .on_conflict_do_update(
        index_elements=[SecondFactorFailures.user_id],
        set_={"failures": SecondFactorFailures.failures + 1},
        where=SecondFactorFailures.failures < bindparam("limit"),
    )
    .returning(SecondFactorFailures.failures)
)
USE_CODE = Query(
    delete(RecoveryCode)
    .where(RecoveryCode.user_id == bindparam("owner_id"), RecoveryCode.code_hash == bindparam("used_hash"))
    .returning(RecoveryCode.user_id)
)
CREATE_CODE = Command(insert(RecoveryCode))
DELETE_CODES = Command(delete(RecoveryCode).where(RecoveryCode.user_id == bindparam("owner_id")))


async def find_factor(session: Session, user_id: UUID) -> FactorRecord | None:
    """Return the second factor that is asked for, if there is one."""
    factor = await session.fetch_one_or_none(FACTOR, owner_id=user_id)
    return factor if factor is not None and factor.confirmed_at is not None else None


async def find_factors(session: Session, user_id: UUID) -> Factors | None:
    """Return what is asked for besides the password, if there is anything."""
    factors = Factors(await find_factor(session, user_id), await has_passkey(session, user_id))
    return factors if any(factors) else None


async def check_factor(tools: Toolbox, user: Owner, factors: Factors, proof: Proof) -> FactorCheck:
    """Check what was sent besides the right password, and count the failures in a row.

    A failure is counted before the proof is looked at, so that many guesses at once are no way around. Without a proof,
    counting stops before any is refused: nothing was guessed. The caller commits what was written, whatever the result.
    """
    limit = MAX_FAILURES if proof.is_given else NOTICE_FAILURES
    failures = await tools.session.fetch_value(COUNT_FAILURE, owner_id=user.id, limit=limit)
    if proof.is_given and failures is not None and await _is_correct(tools, user.id, factors, proof):
        await tools.session.run(RESET_FAILURES, owner_id=user.id)
        return FactorCheck.CORRECT
    event = AccountEvent.SECOND_FACTOR_REFUSED if proof.is_given else AccountEvent.SECOND_FACTOR_MISSING
    logger.warning(event.value, client=tools.origin.address, user_id=str(user.id), failures=failures or limit)
    await tools.audit.record(event, user.id, failures=failures or limit)
    if failures == NOTICE_FAILURES and tools.settings.sends_mail:
        await outbox_service.notify(tools, EmailKind.SECOND_FACTOR_FAILURES, user.email, user.id)
    if proof.is_given:
        return FactorCheck.INCORRECT
    return FactorCheck.MISSING_AGAIN if failures is None else FactorCheck.MISSING


async def _is_correct(tools: Toolbox, user_id: UUID, factors: Factors, proof: Proof) -> bool:
    if proof.passkey is None:
        return await use_code(tools, user_id, factors.authenticator, proof.otp or "")
    try:
        return (await use_passkey(tools, proof.passkey, *proof.bound_to)).user_id == user_id
    except PasskeyRefusedError:
        return False


async def use_code(tools: Toolbox, user_id: UUID, factor: FactorRecord | None, code: str) -> bool:
    """Take a normalized code of the authenticator or a recovery code; neither works a second time."""
    code = code.replace("-", "").upper()
    if TOTP_CODE.fullmatch(code):
        return factor is not None and await use_totp(tools, user_id, factor, code)
    presented = hash_opaque_token(code)
    if await tools.session.fetch_value(USE_CODE, owner_id=user_id, used_hash=presented) is None:
        return False
    await tools.audit.record(AccountEvent.RECOVERY_CODE_USED, user_id, actor_id=user_id)
    return True


async def use_totp(tools: Toolbox, user_id: UUID, factor: FactorRecord, code: str) -> bool:
    secret = tools.security.decrypt(factor.secret)
    step = _find_step(make_totp(secret), code)
    if step is None:
        return False
    # Re-encrypt at each use, so that SECRET_KEY replaces its predecessors.
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


def make_totp(secret: str) -> TOTP:
    mac = SHA1()  # noqa: S303  # RFC 6238's default MAC, the only one that many apps know
    return TOTP(base64.b32decode(secret), DIGITS, mac, STEP_SECONDS)


async def make_recovery_codes(session: Session, user_id: UUID) -> list[str]:
    """Called with the first second factor of an account; later ones share these codes."""
    codes = [_make_recovery_code() for _ in range(RECOVERY_CODES)]
    for code in codes:
        await session.run(CREATE_CODE, user_id=user_id, code_hash=hash_opaque_token(code))
    return ["-".join(re.findall("....", code)) for code in codes]


def _make_recovery_code() -> str:
    return base64.b32encode(secrets.token_bytes(RECOVERY_CODE_BYTES)).decode()
