"""Codes of a second factor: TOTP codes of an authenticator app (RFC 6238), and recovery codes."""

import base64
import re
import secrets
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
from app.core.context import Context
from app.core.db.query import Command, Query, columns
from app.core.db.session import Session
from app.core.security.tokens import hash_opaque_token
from app.outbox import service as outbox_service

logger = structlog.get_logger(__name__)

STEP_SECONDS = 30
# Codes of one step before and one after now are accepted: clocks differ, and typing takes time (RFC 6238 §5.2).
TOLERATED_STEPS = 1
RECOVERY_CODES = 10
# 80 bits, typed as four groups of four characters.
RECOVERY_CODE_BYTES = 10

# After NOTICE_FAILURES consecutive failures, the owner is notified. After MAX_FAILURES, every second factor is refused
# until the password is changed or reset; NIST SP 800-63B (3.2.2) allows at most 100.
NOTICE_FAILURES, MAX_FAILURES = 5, 50

INCORRECT_CODE = "Incorrect second factor: the code is wrong or was used, or the passkey is not valid. Try again."
FACTOR_REQUIRED = "A second factor is required: enter a code (field otp), or use a passkey (field passkey)."


class FactorCheck(Enum):
    CORRECT = auto()
    INCORRECT = auto()
    # No code or passkey was sent: the first step of a sign-in.
    MISSING = auto()
    # As MISSING, but too many times in a row.
    MISSING_AGAIN = auto()


class FactorRecord(NamedTuple):
    secret: str
    confirmed_at: datetime | None


class Factors(NamedTuple):
    """The second factors of an account."""

    authenticator: FactorRecord | None
    has_passkey: bool


class Owner(NamedTuple):
    id: UUID
    email: str


@dataclass(frozen=True)
class Proof:
    """A second factor in a request: a normalized code, or the response of a passkey."""

    otp: str | None
    passkey: PasskeyAssertion | None
    # IDs of the sessions or browsers to which the passkey's challenge may be bound. An empty ID stands for a challenge
    # that is not bound, and so does an empty tuple.
    bound_to: tuple[str, ...] = ()

    @property
    def is_given(self) -> bool:
        return bool(self.otp) or self.passkey is not None


_FACTOR = select(*columns(FactorRecord, SecondFactor)).where(SecondFactor.user_id == bindparam("owner_id"))
FACTOR = Query(_FACTOR, FactorRecord)
# Locked, so that no other request replaces the secret after a code was checked and before the secret is confirmed.
FACTOR_TO_CONFIRM = Query(_FACTOR.with_for_update(), FactorRecord)
# Atomic: of two concurrent requests with the same code, one gets the row.
USE_STEP = Query(
    update(SecondFactor)
    .where(SecondFactor.user_id == bindparam("owner_id"), SecondFactor.last_step < bindparam("used_step"))
    .values(last_step=bindparam("used_step"), secret=bindparam("new_secret"))
    .returning(SecondFactor.user_id)
)
# Atomic: the upsert locks the row until the commit, so that concurrent guesses wait for the outcome of this one.
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
    """Return the account's authenticator app, or None if the account has no confirmed one."""
    factor = await session.fetch_one_or_none(FACTOR, owner_id=user_id)
    return factor if factor is not None and factor.confirmed_at is not None else None


async def find_factors(session: Session, user_id: UUID) -> Factors | None:
    """Return the account's second factors, or None if it has none."""
    factors = Factors(await find_factor(session, user_id), await has_passkey(session, user_id))
    return factors if any(factors) else None


async def check_factor(ctx: Context, user: Owner, factors: Factors, proof: Proof) -> FactorCheck:
    """Check the second factor after a correct password, and count consecutive failures.

    A failure is counted before the check, so that concurrent guesses cannot exceed MAX_FAILURES; a success resets the
    count. Without a proof, counting stops at NOTICE_FAILURES, since nothing was guessed. Commit after each call,
    whatever the result.
    """
    limit = MAX_FAILURES if proof.is_given else NOTICE_FAILURES
    failures = await ctx.session.fetch_value(COUNT_FAILURE, owner_id=user.id, limit=limit)
    if proof.is_given and failures is not None and await _is_correct(ctx, user.id, factors, proof):
        await ctx.session.run(RESET_FAILURES, owner_id=user.id)
        return FactorCheck.CORRECT
    event = AccountEvent.SECOND_FACTOR_REFUSED if proof.is_given else AccountEvent.SECOND_FACTOR_MISSING
    logger.warning(event.value, client=ctx.client.ip_address, user_id=str(user.id), failures=failures or limit)
    await ctx.audit.record(event, user.id, failures=failures or limit)
    if failures == NOTICE_FAILURES and ctx.settings.sends_mail:
        await outbox_service.notify(ctx, EmailKind.SECOND_FACTOR_FAILURES, user.email, user.id)
    if proof.is_given:
        return FactorCheck.INCORRECT
    return FactorCheck.MISSING_AGAIN if failures is None else FactorCheck.MISSING


async def _is_correct(ctx: Context, user_id: UUID, factors: Factors, proof: Proof) -> bool:
    if proof.passkey is None:
        return await use_code(ctx, user_id, factors.authenticator, proof.otp or "")
    try:
        return (await use_passkey(ctx, proof.passkey, *proof.bound_to)).user_id == user_id
    except PasskeyRefusedError:
        return False


async def use_code(ctx: Context, user_id: UUID, factor: FactorRecord | None, code: str) -> bool:
    """Return whether a normalized code is correct: a code of the authenticator app, or a recovery code.

    A correct code is used up.
    """
    code = code.replace("-", "").upper()
    if TOTP_CODE.fullmatch(code):
        return factor is not None and await use_totp(ctx, user_id, factor, code)
    presented = hash_opaque_token(code)
    if await ctx.session.fetch_value(USE_CODE, owner_id=user_id, used_hash=presented) is None:
        return False
    await ctx.audit.record(AccountEvent.RECOVERY_CODE_USED, user_id, actor_id=user_id)
    return True


async def use_totp(ctx: Context, user_id: UUID, factor: FactorRecord, code: str) -> bool:
    secret = ctx.secret_box.decrypt(factor.secret)
    step = _find_step(make_totp(secret), code, ctx.clock())
    if step is None:
        return False
    # Re-encrypt at each use, so that SECRET_KEY replaces SECRET_KEY_FALLBACKS.
    new_secret = ctx.secret_box.encrypt(secret)
    return await ctx.session.fetch_value(USE_STEP, owner_id=user_id, used_step=step, new_secret=new_secret) is not None


def _find_step(totp: TOTP, code: str, now: float) -> int | None:
    if not TOTP_CODE.fullmatch(code):
        return None
    current = int(now) // STEP_SECONDS
    for step in range(current - TOLERATED_STEPS, current + TOLERATED_STEPS + 1):
        try:
            totp.verify(code.encode(), step * STEP_SECONDS)
        except InvalidToken:
            continue
        return step
    return None


def make_totp(secret: str) -> TOTP:
    mac = SHA1()  # noqa: S303  # RFC 6238's default, the only one that many apps support
    return TOTP(base64.b32decode(secret), DIGITS, mac, STEP_SECONDS)


async def make_recovery_codes(session: Session, user_id: UUID) -> list[str]:
    """Create and return recovery codes. All second factors of an account share these codes.

    Call this function only if the account had no second factor before.
    """
    codes = [_make_recovery_code() for _ in range(RECOVERY_CODES)]
    for code in codes:
        await session.run(CREATE_CODE, user_id=user_id, code_hash=hash_opaque_token(code))
    return ["-".join(re.findall("....", code)) for code in codes]


def _make_recovery_code() -> str:
    return base64.b32encode(secrets.token_bytes(RECOVERY_CODE_BYTES)).decode()
