"""Confirm that the owner changes an account, and not somebody with a copied token."""

from sqlalchemy import bindparam, select

from app.accounts.events import AccountEvent
from app.accounts.models import Caller, User
from app.accounts.quotas import commit_and_limit_changes
from app.accounts.second_factor.codes import INCORRECT_CODE, FactorCheck, Owner, Proof, check_factor, find_factors
from app.accounts.second_factor.passkeys import INCORRECT_SIGNATURE
from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.exceptions import UnprocessableError
from app.core.query import Query
from app.core.throttling import AttemptCounter
from app.core.toolbox import Toolbox

PASSWORD_HASH = Query(select(User.password_hash).where(User.id == bindparam("user_id")))


async def confirm_identity(tools: Toolbox, caller: Caller, confirmation: PasswordConfirmation) -> str:
    """Check the password, and a code where the account has a second factor; return the hash of the password.

    Attempts are counted for each session: a copied token neither guesses the password, nor keeps the owner from
    confirming it elsewhere. Raises UnprocessableError.
    """
    user = caller.user
    password_hash = await tools.session.fetch_value(PASSWORD_HASH, user_id=user.id)
    free = tools.settings.throttle_account_attempts
    counter = AttemptCounter("password in session", str(caller.session_id), free, reports_outcome=True)
    with tools.security.reserve_hash():
        await tools.throttle.commit_and_take(tools.session, counter)
        check = await tools.security.check_password(confirmation.current_password.get_secret_value(), password_hash)
    if password_hash is None or not check.is_correct:
        await tools.audit.record(AccountEvent.PASSWORD_REFUSED, user.id, actor_id=user.id)
        raise await _record_failure(tools, counter, "The current password is not right.")
    factors = await find_factors(tools.session, user.id)
    if factors is not None:
        proof = Proof(confirmation.otp, confirmation.passkey, ("", str(caller.session_id)))
        found = await check_factor(tools, Owner(user.id, user.email), factors, proof)
        if found is FactorCheck.INCORRECT:
            raise await _record_failure(
                tools, counter, INCORRECT_CODE if confirmation.passkey is None else INCORRECT_SIGNATURE
            )
        if found is not FactorCheck.CORRECT:
            raise await _record_failure(tools, counter, "The account has a second factor: send a code of it as otp.")
    await tools.throttle.reset(tools.session, counter)
    # This also commits the reset: if the request fails for another reason, the right password is no attempt. Counted
    # with the right password only: a copied token must not use up the owner's confirmations.
    await commit_and_limit_changes(tools, "confirmation", user.id)
    return password_hash


async def _record_failure(tools: Toolbox, counter: AttemptCounter, detail: str) -> UnprocessableError:
    await tools.throttle.mark_failed(tools.session, counter)
    return UnprocessableError(detail, keeps_changes=True)
