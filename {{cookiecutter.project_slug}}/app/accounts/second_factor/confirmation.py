"""That it is the owner who changes an account, and not somebody with a copied token."""

from sqlalchemy import bindparam, select

from app.accounts.events import AccountEvent
from app.accounts.models import Caller, User
from app.accounts.second_factor.codes import WRONG_CODE, find_factor, use_code
from app.accounts.second_factor.passkeys import PasskeyRefusedError, has_passkey, use_passkey
from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.database import release_connection
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
    await release_connection(tools.session)
    free = tools.settings.throttle_account_attempts
    counter = AttemptCounter("password in session", str(caller.session_id), free, is_decided=True)
    await tools.throttle.count(counter)
    check = await tools.security.check_password(confirmation.current_password.get_secret_value(), password_hash)
    if password_hash is None or not check.is_correct:
        raise await _refuse(tools, caller, counter, "The current password is not right.")
    refusal = await _check_second_factor(tools, caller, confirmation)
    if refusal is not None:
        raise await _refuse(tools, caller, counter, refusal)
    await tools.throttle.forget(tools.session, counter)
    # Committed here: if the request fails for another reason, the right password does not count as an attempt.
    await release_connection(tools.session)
    return password_hash


async def _check_second_factor(tools: Toolbox, caller: Caller, confirmation: PasswordConfirmation) -> str | None:
    """Return what was wrong."""
    factor = await find_factor(tools.session, caller.user.id)
    if factor is None and not await has_passkey(tools.session, caller.user.id):
        return None
    if confirmation.passkey is not None:
        try:
            used = await use_passkey(tools, confirmation.passkey, "", str(caller.session_id))
        except PasskeyRefusedError as error:
            return error.detail
        return None if used.user_id == caller.user.id else "The passkey is of another account."
    if not confirmation.otp:
        return "The account has a second factor: send a code of it as otp."
    return None if await use_code(tools, caller.user.id, factor, confirmation.otp) else WRONG_CODE


async def _refuse(tools: Toolbox, caller: Caller, counter: AttemptCounter, detail: str) -> UnprocessableError:
    await tools.throttle.decide(tools.session, counter)
    await tools.audit.record(AccountEvent.PASSWORD_REFUSED, caller.user.id, actor_id=caller.user.id)
    return UnprocessableError(detail, keeps_changes=True)
