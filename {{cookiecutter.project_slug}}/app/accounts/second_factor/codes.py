"""The codes that a second factor takes: of an authenticator (TOTP, RFC 6238), and recovery codes."""

import base64
import time
from datetime import datetime
from enum import Enum, auto
from typing import NamedTuple
from uuid import UUID

import structlog
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor import InvalidToken
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from sqlalchemy import bindparam, delete, select, update

from app.accounts.emails import EmailKind
from app.accounts.events import AccountEvent
from app.accounts.models import RecoveryCode, SecondFactor
from app.accounts.queries import FORGET_FAILURES
from app.accounts.second_factor.schemas import DIGITS, TOTP_CODE
from app.core.database import Session
from app.core.query import Query, columns
from app.core.security import hash_opaque_token
from app.core.toolbox import Toolbox
from app.outbox import service as outbox_service

logger = structlog.get_logger(__name__)

STEP_SECONDS = 30
# One step to either side, for clocks that differ and people who type (RFC 6238 §5.2).
TOLERATED_STEPS = 1

# After so many failures in a row the owner is told, and after so many no code is taken any more, until the password is
# set anew: NIST SP 800-63B (§3.2.2) allows no more than 100.
NOTICE_FAILURES, MAX_FAILURES = 5, 50

WRONG_CODE = "The code is not right."


class CodeCheck(Enum):
    RIGHT = auto()
    WRONG = auto()
    # As in the first step of an honest sign-in.
    MISSING = auto()
    # So often in a row that it was not such a step.
    MISSING_AGAIN = auto()


class FactorRecord(NamedTuple):
    secret: str
    confirmed_at: datetime | None


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
# One statement decides between many guesses at once, and holds the others up until this one is decided.
COUNT_FAILURE = Query(
    update(SecondFactor)
    .where(SecondFactor.user_id == bindparam("owner_id"), SecondFactor.failures < bindparam("limit"))
    .values(failures=SecondFactor.failures + 1)
    .returning(SecondFactor.failures)
)
USE_CODE = Query(
    delete(RecoveryCode)
    .where(RecoveryCode.user_id == bindparam("owner_id"), RecoveryCode.code_hash == bindparam("used_hash"))
    .returning(RecoveryCode.user_id)
)


async def find_factor(session: Session, user_id: UUID) -> FactorRecord | None:
    """Return the second factor that is asked for, if there is one."""
    factor = await session.fetch_one_or_none(FACTOR, owner_id=user_id)
    return factor if factor is not None and factor.confirmed_at is not None else None


async def check_code(tools: Toolbox, user_id: UUID, email: str, factor: FactorRecord, code: str | None) -> CodeCheck:
    """Check a normalized code of an account whose password was right, and count the failures in a row.

    A failure is counted before the code is looked at, so that many guesses at once are no way around. Without a code,
    counting stops before codes are refused: nothing was guessed. The caller keeps what was written, whatever comes out.
    """
    limit = MAX_FAILURES if code else NOTICE_FAILURES
    failures = await tools.session.fetch_value(COUNT_FAILURE, owner_id=user_id, limit=limit)
    if code and failures is not None and await use_code(tools, user_id, factor, code):
        await tools.session.run(FORGET_FAILURES, owner_id=user_id)
        return CodeCheck.RIGHT
    event = AccountEvent.SECOND_FACTOR_REFUSED if code else AccountEvent.SECOND_FACTOR_MISSING
    logger.warning(event.value, client=tools.origin.address, user_id=str(user_id), failures=failures or limit)
    await tools.audit.record(event, user_id, failures=failures or limit)
    if failures == NOTICE_FAILURES and tools.settings.sends_mail:
        await outbox_service.enqueue(tools.session, EmailKind.SECOND_FACTOR_FAILURES, email, user_id)
    if code:
        return CodeCheck.WRONG
    return CodeCheck.MISSING_AGAIN if failures is None else CodeCheck.MISSING


async def use_code(tools: Toolbox, user_id: UUID, factor: FactorRecord, code: str) -> bool:
    """Take a normalized code of the authenticator or a recovery code; neither works a second time."""
    code = code.replace("-", "").upper()
    if TOTP_CODE.fullmatch(code):
        return await use_totp(tools, user_id, factor, code)
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


def make_totp(secret: str) -> TOTP:
    # SHA-1 as a MAC is sound, and what authenticator apps know.
    return TOTP(base64.b32decode(secret), DIGITS, SHA1(), STEP_SECONDS)  # noqa: S303  # see above
