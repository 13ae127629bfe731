"""Confirm that a change is made by the owner of the account, not by a holder of a copied token."""

from sqlalchemy import bindparam, select

from app.accounts.events import AccountEvent
from app.accounts.models import Caller, User
from app.accounts.quotas import commit_and_limit_changes
from app.accounts.second_factor.codes import (
    FACTOR_REQUIRED,
    INCORRECT_CODE,
    FactorCheck,
    Owner,
    Proof,
    check_factor,
    find_factors,
)
from app.accounts.second_factor.passkeys import INVALID_SIGNATURE, REFUSALS
from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.context import Context
from app.core.db.query import Query
from app.core.db.session import commit_and_release
from app.core.errors import TooManyRequestsError, UnprocessableError
from app.core.security.throttling import AttemptCounter

PASSWORD_HASH = Query(select(User.password_hash).where(User.id == bindparam("user_id")))


async def confirm_identity(ctx: Context, caller: Caller, confirmation: PasswordConfirmation) -> str:
    """Check the password and the second factor, if there is one; commit, and return the hash of the password.

    Attempts are counted per session: the holder of a copied token cannot guess the password, and cannot prevent the
    owner from confirming changes in another session. Raises UnprocessableError and TooManyRequestsError.
    """
    user = caller.user
    password_hash = await ctx.session.fetch_value(PASSWORD_HASH, user_id=user.id)
    free = ctx.settings.throttle_account_attempts
    counter = AttemptCounter("password in session", str(caller.session_id), free, reports_outcome=True)
    with ctx.passwords.reserve():
        await ctx.throttle.commit_and_take(ctx.session, counter)
        check = await ctx.passwords.verify(confirmation.current_password.get_secret_value(), password_hash)
    if password_hash is None or not check.is_correct:
        await ctx.audit.record(AccountEvent.PASSWORD_REFUSED, user.id, actor_id=user.id)
        raise await _record_failure(ctx, counter, "Incorrect current password.", "incorrect-password")
    try:
        # After the password check: the holder of a copied token must not use up the owner's confirmations. Before the
        # check of the second factor: a refusal by this limit must not use up a recovery code.
        await commit_and_limit_changes(ctx, "confirmation", user.id)
    except TooManyRequestsError:
        await ctx.throttle.refund(ctx.session, counter)
        raise
    factors = await find_factors(ctx.session, user.id)
    if factors is not None:
        proof = Proof(confirmation.otp, confirmation.passkey, ("", str(caller.session_id)))
        found = await check_factor(ctx, Owner(user.id, user.email), factors, proof)
        if found is FactorCheck.INCORRECT:
            if confirmation.passkey is not None:
                raise await _record_failure(ctx, counter, REFUSALS[INVALID_SIGNATURE], INVALID_SIGNATURE)
            raise await _record_failure(ctx, counter, INCORRECT_CODE, "incorrect-code")
        if found is not FactorCheck.CORRECT:
            raise await _record_failure(ctx, counter, FACTOR_REQUIRED, "second-factor-required")
    await ctx.throttle.reset(ctx.session, counter)
    # Commit the reset: a successful confirmation is no failed attempt, even if the request fails later.
    await commit_and_release(ctx.session)
    return password_hash


async def _record_failure(ctx: Context, counter: AttemptCounter, detail: str, code: str) -> UnprocessableError:
    await ctx.throttle.mark_failed(ctx.session, counter)
    return UnprocessableError(detail, code=code, commit_anyway=True)
