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
from app.accounts.password_policy import refuse_unfit_password
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
from app.core.context import Context
from app.core.db.models import utc_now
from app.core.db.session import commit_and_release
from app.core.errors import ConflictError, UnprocessableError
from app.core.security.throttling import client_counters
from app.outbox import service as outbox_service

INCORRECT_PASSWORD = (
    "Incorrect password. Enter the password of your sign-up or, if you already had an account, its password."  # noqa: S105  # an error message, not a password
)


async def request_verification(ctx: Context, email: str) -> None:
    """Send another verification message. Raises TooManyRequestsError."""
    await commit_and_limit_messages(ctx, EmailKind.VERIFICATION, email)
    await outbox_service.enqueue(ctx.session, EmailKind.VERIFICATION, email)


async def request_password_reset(ctx: Context, email: str) -> None:
    """Send a code for a new password, if the address has an account. Raises TooManyRequestsError."""
    await commit_and_limit_messages(ctx, EmailKind.PASSWORD_RESET, email)
    await outbox_service.enqueue(ctx.session, EmailKind.PASSWORD_RESET, email)


async def reset_password(ctx: Context, token: str, password: str) -> None:
    """Set the password and end all sessions. The code also verifies the address of the message.

    Raises TooManyRequestsError, and UnprocessableError for an invalid code or a weak password.
    """
    await _commit_and_take_attempt(ctx)
    found = await one_time_tokens.find_token(ctx.session, token, Purpose.RESET_PASSWORD)
    assert found.user_id is not None  # noqa: S101  # for the type checker; codes of these purposes have a user
    user = await get_user(ctx.session, found.user_id)
    await commit_and_release(ctx.session)
    await refuse_unfit_password(ctx, password, user.email, user.name)
    new_hash = await ctx.passwords.hash(password)
    verified_at = user.email_verified_at or utc_now()
    changes = {"password_hash": new_hash, "email_verified_at": verified_at}
    await ctx.session.fetch_one_or_none(UPDATE_USER, user_id=user.id, **changes)
    await one_time_tokens.use_token(ctx.session, token, Purpose.RESET_PASSWORD)
    if user.email_verified_at is None:
        # The person who signed up is perhaps not the owner of the address, and must not keep access to the account.
        await revoke_access(ctx.session, user.id)
    await ctx.session.run(END_SESSIONS, user_id=user.id)
    await remember_network(ctx, user.id)
    await finish_password_change(ctx, user)
    await ctx.audit.record(AccountEvent.PASSWORD_RESET, user.id)


async def request_email_change(ctx: Context, caller: Caller, data: EmailChange) -> None:
    """Send a code to the new address, and a notice to the old one. The change waits for the confirmation."""
    user = caller.user
    password_hash = await confirm_identity(ctx, caller, data)
    await commit_and_limit_messages(ctx, EmailKind.EMAIL_CHANGE, data.new_email, user.id)
    if await ctx.session.fetch_value(LOCK_IF_PASSWORD, user_id=user.id, verified_hash=password_hash) is None:
        raise ConflictError(PASSWORD_CHANGED, code="password-changed")
    await outbox_service.enqueue(ctx.session, EmailKind.EMAIL_CHANGE, data.new_email, user.id)
    await outbox_service.notify(ctx, EmailKind.EMAIL_CHANGE_NOTICE, user.email, user.id)
    await ctx.audit.record(AccountEvent.EMAIL_CHANGE_REQUESTED, user.id, actor_id=user.id)


async def verify_email(ctx: Context, data: EmailVerification) -> None:
    """Verify the account's address, or change it to the requested address. Raises UnprocessableError, ConflictError."""
    await _commit_and_take_attempt(ctx)
    token = data.token
    purposes = (Purpose.VERIFY_EMAIL, Purpose.CHANGE_EMAIL)
    found = await one_time_tokens.find_token(ctx.session, token, *purposes)
    assert found.user_id is not None  # noqa: S101  # for the type checker; codes of these purposes have a user
    changes: dict[str, object] = {"email": found.address, "email_verified_at": utc_now()}
    await _check_password(ctx, found, data.password)
    await cancel_email_change(ctx.session, found.user_id)
    before = await get_user(ctx.session, found.user_id)
    if found.payload and found.payload["password_hash"] != await _read_hash(ctx, found.user_id):
        # Another sign-up created the account. Set the password of the confirmed sign-up, and delete other credentials.
        changes |= found.payload
        await revoke_access(ctx.session, found.user_id)
    try:
        await ctx.session.fetch_one_or_none(UPDATE_USER, user_id=found.user_id, **changes)
    except IntegrityError as error:
        raise ConflictError(ADDRESS_TAKEN, code="address-taken") from error
    await one_time_tokens.use_token(ctx.session, token, *purposes)
    await one_time_tokens.revoke_tokens(ctx.session, found.user_id)
    is_change = found.purpose == Purpose.CHANGE_EMAIL
    event = AccountEvent.EMAIL_CHANGED if is_change else AccountEvent.EMAIL_VERIFIED
    if is_change:
        await notify_owner(ctx, found.user_id, AccountChange.EMAIL, address=before.email)
    await ctx.audit.record(event, found.user_id, changes={"email": [before.email, found.address]})


async def _commit_and_take_attempt(ctx: Context) -> None:
    counters = client_counters("code from address", ctx.client.ip_address, ctx.settings)
    await ctx.throttle.commit_and_take(ctx.session, *counters)


async def _check_password(ctx: Context, found: TokenRecord, password: SecretStr) -> None:
    """Raise UnprocessableError if the password is incorrect.

    The code of a sign-up requires the password of this sign-up; every other code requires the password of the account.
    A person who only follows the link of a message must not verify the address for a stranger's account.
    """
    assert found.user_id is not None  # noqa: S101  # for the type checker; codes of this purpose have a user
    expected = found.payload.get("password_hash") or await _read_hash(ctx, found.user_id)
    await commit_and_release(ctx.session)
    # The payload is JSON; sign_up writes a string.
    password_hash = cast(str | None, expected)
    if not (await ctx.passwords.verify(password.get_secret_value(), password_hash)).is_correct:
        raise UnprocessableError(INCORRECT_PASSWORD, code="incorrect-sign-up-password")


async def _read_hash(ctx: Context, user_id: UUID) -> str | None:
    return await ctx.session.fetch_value(PASSWORD_HASH, user_id=user_id)
