"""Confirm that the owner changes an account, and not somebody with a copied token."""

from sqlalchemy import bindparam, select

from app.accounts.events import AccountEvent
from app.accounts.models import Caller, User
from app.accounts.second_factor.codes import WRONG_CODE, FactorCheck, Owner, Proof, check_factor, find_factors
from app.accounts.second_factor.passkeys import WRONG_PASSKEY
from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.context import Context
from app.core.db.query import Query
from app.core.db.session import release_connection
from app.core.errors import UnprocessableError
from app.core.security.throttling import AttemptCounter

PASSWORD_HASH = Query(select(User.password_hash).where(User.id == bindparam("user_id")))


async def confirm_identity(ctx: Context, caller: Caller, confirmation: PasswordConfirmation) -> str:
    """Check the password, and a code where the account has a second factor; return the hash of the password.

    Attempts are counted for each session: a copied token neither guesses the password, nor keeps the owner from
    confirming it elsewhere. Raises UnprocessableError.
    """
    user = caller.user
    password_hash = await ctx.session.fetch_value(PASSWORD_HASH, user_id=user.id)
    await release_connection(ctx.session)
    free = ctx.settings.throttle_account_attempts
    counter = AttemptCounter("password in session", str(caller.session_id), free, is_decided=True)
    with ctx.passwords.reserve():
        await ctx.throttle.count(counter)
        check = await ctx.passwords.verify(confirmation.current_password.get_secret_value(), password_hash)
    if password_hash is None or not check.is_correct:
        await ctx.audit.record(AccountEvent.PASSWORD_REFUSED, user.id, actor_id=user.id)
        raise await _refuse(ctx, counter, "The current password is not right.")
    factors = await find_factors(ctx.session, user.id)
    if factors is not None:
        proof = Proof(confirmation.otp, confirmation.passkey, ("", str(caller.session_id)))
        found = await check_factor(ctx, Owner(user.id, user.email), factors, proof)
        if found is FactorCheck.WRONG:
            raise await _refuse(ctx, counter, WRONG_CODE if confirmation.passkey is None else WRONG_PASSKEY)
        if found is not FactorCheck.RIGHT:
            raise await _refuse(ctx, counter, "The account has a second factor: send a code of it as otp.")
    await ctx.throttle.forget(ctx.session, counter)
    # Committed here: if the request fails for another reason, the right password does not count as an attempt.
    await release_connection(ctx.session)
    return password_hash


async def _refuse(ctx: Context, counter: AttemptCounter, detail: str) -> UnprocessableError:
    await ctx.throttle.decide(ctx.session, counter)
    return UnprocessableError(detail, commit_anyway=True)
