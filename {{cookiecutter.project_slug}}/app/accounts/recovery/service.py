"""Accounts by mail: verify an address, change it, set a forgotten password."""

from typing import cast
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy.exc import IntegrityError

from app.accounts import one_time_tokens
from app.accounts.emails import AccountChange, EmailKind, Purpose, limit_messages, notify_owner
from app.accounts.events import AccountEvent
from app.accounts.models import Caller
from app.accounts.one_time_tokens import TokenRecord
from app.accounts.password_policy import refuse_unfit_password
from app.accounts.queries import (
    END_SESSIONS,
    HOLD_PASSWORD,
    UPDATE_USER,
    forget_access,
    get_user,
    remember_network,
    settle_password,
    withdraw_email_change,
)
from app.accounts.recovery.schemas import EmailChange, EmailVerification
from app.accounts.second_factor.confirmation import PASSWORD_HASH, confirm_identity
from app.core.context import Context
from app.core.db.models import utc_now
from app.core.db.session import release_connection
from app.core.errors import ConflictError, UnprocessableError
from app.outbox import service as outbox_service


async def reset_password(ctx: Context, token: str, password: str) -> None:
    """Set the password and end every session. The code also verifies the address that it was sent to."""
    found = await one_time_tokens.find_token(ctx.session, token, Purpose.RESET_PASSWORD)
    assert found.user_id is not None  # noqa: S101  # for the type checker; codes of these purposes have a user
    user = await get_user(ctx.session, found.user_id)
    await release_connection(ctx.session)
    await refuse_unfit_password(ctx, password, user.email, user.name)
    new_hash = await ctx.passwords.hash(password)
    verified_at = user.email_verified_at or utc_now()
    changes = {"password_hash": new_hash, "email_verified_at": verified_at}
    await ctx.session.fetch_one_or_none(UPDATE_USER, user_id=user.id, **changes)
    await one_time_tokens.use_token(ctx.session, token, Purpose.RESET_PASSWORD)
    if user.email_verified_at is None:
        # Whoever signed up with the address need not be the person who reads its mail.
        await forget_access(ctx.session, user.id)
    await ctx.session.run(END_SESSIONS, user_id=user.id)
    await remember_network(ctx, user.id)
    await settle_password(ctx, user)
    await ctx.audit.record(AccountEvent.PASSWORD_RESET, user.id)


async def request_email_change(ctx: Context, caller: Caller, data: EmailChange) -> None:
    """Nothing changes before the new address is confirmed; the old one hears of it now."""
    user = caller.user
    password_hash = await confirm_identity(ctx, caller, data)
    await limit_messages(ctx, EmailKind.EMAIL_CHANGE, data.new_email, user.id)
    if await ctx.session.fetch_value(HOLD_PASSWORD, user_id=user.id, verified_hash=password_hash) is None:
        raise ConflictError("The password was changed at the same time.")
    await outbox_service.enqueue(ctx.session, EmailKind.EMAIL_CHANGE, data.new_email, user.id)
    await outbox_service.notify(ctx, EmailKind.EMAIL_CHANGE_NOTICE, user.email, user.id)
    await ctx.audit.record(AccountEvent.EMAIL_CHANGE_REQUESTED, user.id, actor_id=user.id)


async def verify_email(ctx: Context, data: EmailVerification) -> None:
    """Verify the account's address, or make the new one that was asked for the account's."""
    token = data.token
    purposes = (Purpose.VERIFY_EMAIL, Purpose.CHANGE_EMAIL)
    found = await one_time_tokens.find_token(ctx.session, token, *purposes)
    assert found.user_id is not None  # noqa: S101  # for the type checker; codes of these purposes have a user
    changes: dict[str, object] = {"email": found.address, "email_verified_at": utc_now()}
    await _check_password(ctx, found, data.password)
    await withdraw_email_change(ctx.session, found.user_id)
    before = await get_user(ctx.session, found.user_id)
    if found.payload and found.payload["password_hash"] != await _read_hash(ctx, found.user_id):
        # Another sign-up came first. What counts is the one that is confirmed, and nothing that the other one has left.
        changes |= found.payload
        await forget_access(ctx.session, found.user_id)
    try:
        await ctx.session.fetch_one_or_none(UPDATE_USER, user_id=found.user_id, **changes)
    except IntegrityError as error:
        raise ConflictError("There is already an account with this e-mail address.") from error
    await one_time_tokens.use_token(ctx.session, token, *purposes)
    await one_time_tokens.revoke_tokens(ctx.session, found.user_id)
    is_change = found.purpose == Purpose.CHANGE_EMAIL
    event = AccountEvent.EMAIL_CHANGED if is_change else AccountEvent.EMAIL_VERIFIED
    if is_change:
        await notify_owner(ctx, found.user_id, AccountChange.EMAIL, address=before.email)
    await ctx.audit.record(event, found.user_id, changes={"email": [before.email, found.address]})


async def _check_password(ctx: Context, found: TokenRecord, password: SecretStr) -> None:
    """Compare with the sign-up's that the code is of, or with the account's where the code was asked for later.

    Who only follows the link of a message that a stranger has asked for gives no account of the stranger the address.
    """
    assert found.user_id is not None  # noqa: S101  # for the type checker; codes of this purpose have a user
    expected = found.payload.get("password_hash") or await _read_hash(ctx, found.user_id)
    await release_connection(ctx.session)
    # The payload is JSON; sign_up writes a string.
    password_hash = cast(str | None, expected)
    if not (await ctx.passwords.verify(password.get_secret_value(), password_hash)).is_correct:
        raise UnprocessableError("The password is not that of the account, or of the sign-up, that the message is for.")


async def _read_hash(ctx: Context, user_id: UUID) -> str | None:
    return await ctx.session.fetch_value(PASSWORD_HASH, user_id=user_id)
