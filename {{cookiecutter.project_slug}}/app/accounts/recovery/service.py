"""Account recovery by e-mail: verify an address, change it, set a forgotten password."""

from typing import cast
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy.exc import IntegrityError

from app.accounts import one_time_tokens
from app.accounts.emails import AccountChange, EmailKind, Purpose, commit_and_limit_messages, notify_owner
from app.accounts.events import AccountEvent
from app.accounts.models import Caller
from app.accounts.one_time_tokens import TokenRecord
from app.accounts.queries import (
    ADDRESS_TAKEN,
    END_SESSIONS,
    LOCK_IF_PASSWORD,
    PASSWORD_CHANGED,
    UPDATE_USER,
    cancel_email_change,
    finish_password_change,
    get_user,
    remember_network,
    revoke_access,
)
from app.accounts.recovery.schemas import EmailChange, EmailVerification
from app.accounts.second_factor.confirmation import PASSWORD_HASH, confirm_identity
from app.core.breached_passwords import refuse_unfit_password
from app.core.database import commit_and_release
from app.core.exceptions import ConflictError, UnprocessableError
from app.core.models import utc_now
from app.core.throttling import client_counters
from app.core.toolbox import Toolbox
from app.outbox import service as outbox_service

INCORRECT_PASSWORD = "Incorrect password. Enter the password of the sign-up or account that the message is for."  # noqa: S105  # a message


async def request_verification(tools: Toolbox, email: str) -> None:
    """Send another verification message. Raises TooManyRequestsError."""
    await commit_and_limit_messages(tools, EmailKind.VERIFICATION, email)
    await outbox_service.enqueue(tools.session, EmailKind.VERIFICATION, email)


async def request_password_reset(tools: Toolbox, email: str) -> None:
    """Send a code for a new password, if the address has an account. Raises TooManyRequestsError."""
    await commit_and_limit_messages(tools, EmailKind.PASSWORD_RESET, email)
    await outbox_service.enqueue(tools.session, EmailKind.PASSWORD_RESET, email)


async def reset_password(tools: Toolbox, token: str, password: str) -> None:
    """Set the password and end all sessions. The code also verifies the address of the message.

    Raises TooManyRequestsError, and UnprocessableError for an invalid code or a weak password.
    """
    await _commit_and_take_attempt(tools)
    found = await one_time_tokens.find_token(tools.session, token, Purpose.RESET_PASSWORD)
    assert found.user_id is not None  # noqa: S101  # for the type checker; codes of these purposes have a user
    user = await get_user(tools.session, found.user_id)
    await commit_and_release(tools.session)
    await refuse_unfit_password(tools, password, user.email, user.name)
    new_hash = await tools.security.hash_password(password)
    verified_at = user.email_verified_at or utc_now()
    changes = {"password_hash": new_hash, "email_verified_at": verified_at}
    await tools.session.fetch_one_or_none(UPDATE_USER, user_id=user.id, **changes)
    await one_time_tokens.use_token(tools.session, token, Purpose.RESET_PASSWORD)
    if user.email_verified_at is None:
        # The person who signed up need not be the owner of the address.
        await revoke_access(tools.session, user.id)
    await tools.session.run(END_SESSIONS, user_id=user.id)
    await remember_network(tools, user.id)
    await finish_password_change(tools, user)
    await tools.audit.record(AccountEvent.PASSWORD_RESET, user.id)


async def request_email_change(tools: Toolbox, caller: Caller, data: EmailChange) -> None:
    """Send a code to the new address, and a notice to the old one. The change waits for the confirmation."""
    user = caller.user
    password_hash = await confirm_identity(tools, caller, data)
    await commit_and_limit_messages(tools, EmailKind.EMAIL_CHANGE, data.new_email, user.id)
    if await tools.session.fetch_value(LOCK_IF_PASSWORD, user_id=user.id, verified_hash=password_hash) is None:
        raise ConflictError(PASSWORD_CHANGED, code="password-changed")
    await outbox_service.enqueue(tools.session, EmailKind.EMAIL_CHANGE, data.new_email, user.id)
    await outbox_service.notify(tools, EmailKind.EMAIL_CHANGE_NOTICE, user.email, user.id)
    await tools.audit.record(AccountEvent.EMAIL_CHANGE_REQUESTED, user.id, actor_id=user.id)


async def verify_email(tools: Toolbox, data: EmailVerification) -> None:
    """Verify the account's address, or change it to the requested one. Raises UnprocessableError."""
    await _commit_and_take_attempt(tools)
    token = data.token
    purposes = (Purpose.VERIFY_EMAIL, Purpose.CHANGE_EMAIL)
    found = await one_time_tokens.find_token(tools.session, token, *purposes)
    assert found.user_id is not None  # noqa: S101  # for the type checker; codes of these purposes have a user
    changes: dict[str, object] = {"email": found.address, "email_verified_at": utc_now()}
    await _check_password(tools, found, data.password)
    await cancel_email_change(tools.session, found.user_id)
    before = await get_user(tools.session, found.user_id)
    if found.payload and found.payload["password_hash"] != await _read_hash(tools, found.user_id):
        # Another sign-up came first. The confirmed one replaces its password and all other credentials.
        changes |= found.payload
        await revoke_access(tools.session, found.user_id)
    try:
        await tools.session.fetch_one_or_none(UPDATE_USER, user_id=found.user_id, **changes)
    except IntegrityError as error:
        raise ConflictError(ADDRESS_TAKEN, code="address-taken") from error
    await one_time_tokens.use_token(tools.session, token, *purposes)
    await one_time_tokens.revoke_tokens(tools.session, found.user_id)
    is_change = found.purpose == Purpose.CHANGE_EMAIL
    event = AccountEvent.EMAIL_CHANGED if is_change else AccountEvent.EMAIL_VERIFIED
    if is_change:
        await notify_owner(tools, found.user_id, AccountChange.EMAIL, address=before.email)
    await tools.audit.record(event, found.user_id, changes={"email": [before.email, found.address]})


async def _commit_and_take_attempt(tools: Toolbox) -> None:
    counters = client_counters("code from address", tools.origin.address, tools.settings)
    await tools.throttle.commit_and_take(tools.session, *counters)


async def _check_password(tools: Toolbox, found: TokenRecord, password: SecretStr) -> None:
    """Compare with the password of the code's sign-up or, if the code was requested later, of the account.

    A person who only follows the link of a message must not verify the address for a stranger's account.
    """
    assert found.user_id is not None  # noqa: S101  # for the type checker; codes of this purpose have a user
    expected = found.payload.get("password_hash") or await _read_hash(tools, found.user_id)
    await commit_and_release(tools.session)
    # The payload is JSON; sign_up writes a string.
    password_hash = cast(str | None, expected)
    if not (await tools.security.check_password(password.get_secret_value(), password_hash)).is_correct:
        raise UnprocessableError(INCORRECT_PASSWORD, code="incorrect-sign-up-password")


async def _read_hash(tools: Toolbox, user_id: UUID) -> str | None:
    return await tools.session.fetch_value(PASSWORD_HASH, user_id=user_id)
