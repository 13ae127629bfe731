"""Messages about accounts.

The account is looked up when a message is rendered, after the response, so that the response time does not reveal
which accounts exist.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple, TypeAlias
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import bindparam, select

from app.accounts import one_time_tokens
from app.accounts.models import User
from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.query import Query, columns
from app.core.db.session import Session
from app.core.email.message import EmailMessage, QueuedEmail, Renderer, render_email
from app.core.project import read_project
from app.core.security.throttling import AttemptCounter, client_counters, network_of
from app.outbox import service as outbox_service


class AddresseeRecord(NamedTuple):
    id: UUID
    is_active: bool
    email_verified_at: datetime | None


# Locks the user until the code for the address is stored: a concurrent change of the address waits for the lock, and
# then also revokes this code.
ADDRESSEE = Query(
    select(*columns(AddresseeRecord, User))
    .where(User.email == bindparam("user_email"))
    .with_for_update(read=True, key_share=True),
    AddresseeRecord,
)

# Builds the link to a page, with the token in the link. Returns None if no application has such a page: the message
# then contains the token, and the user types it.
LinkTo: TypeAlias = Callable[[Settings, str, str], str | None]

ADDRESS = Query(select(User.email).where(User.id == bindparam("user_id")))
ACTIVE_USER = Query(select(User.id).where(User.id == bindparam("user_id"), User.is_active))


class EmailKind(StrEnum):
    VERIFICATION = "verification"
    PASSWORD_RESET = "password reset"  # noqa: S105  # the name of a kind of message
    ACCOUNT_CHANGED = "account changed"
    PASSKEY_COPIED = "passkey copied"
    EMAIL_CHANGE = "email change"
    EMAIL_CHANGE_NOTICE = "email change notice"
    SECOND_FACTOR_FAILURES = "second factor failures"


# Messages with a code.
CODE_KINDS = (EmailKind.VERIFICATION, EmailKind.PASSWORD_RESET, EmailKind.EMAIL_CHANGE)


class AccountChange(StrEnum):
    """Changes that the owner is notified of."""

    PASSWORD = "password"  # noqa: S105  # the name of a change
    EMAIL = "email"
    SECOND_FACTOR_ENABLED = "second factor enabled"
    SECOND_FACTOR_DISABLED = "second factor disabled"
    PASSKEY_ADDED = "passkey added"
    PASSKEY_REMOVED = "passkey removed"
    ADMIN_GRANTED = "admin granted"
    ADMIN_REVOKED = "admin revoked"
    DEACTIVATED = "deactivated"
    REACTIVATED = "reactivated"
    DELETED = "deleted"


_TAKE_BACK = (
    'If this was not you, reset your password now with "forgot password", and remove passkeys that you do not know.'
)
_ASK_FOR_HELP = "If you did not expect this, contact the operators of this service immediately."
# For each change: subject, event, and advice.
CHANGES = {
    AccountChange.PASSWORD: (
        "Your password was changed",
        "The password of your account was changed, and all sessions that began before the change were ended.",
        _TAKE_BACK,
    ),
    AccountChange.EMAIL: (
        "Your e-mail address was changed",
        "Your account has a new e-mail address. Messages about the account are now sent to the new address, and no"
        " longer to the old one, at which you receive this message.",
        _ASK_FOR_HELP,
    ),
    AccountChange.SECOND_FACTOR_ENABLED: (
        "Your second factor was switched on",
        "To sign in with your password, you now also need a code from your authenticator app.",
        _ASK_FOR_HELP,
    ),
    AccountChange.SECOND_FACTOR_DISABLED: (
        "Your second factor was switched off",
        "A second factor of your account was switched off: signing in no longer requires it.",
        _TAKE_BACK,
    ),
    AccountChange.PASSKEY_ADDED: (
        "A passkey was added to your account",
        "A passkey was added to your account. It can be used to sign in without your password.",
        "If this was not you, remove the passkey and change your password.",
    ),
    AccountChange.PASSKEY_REMOVED: (
        "A passkey was removed from your account",
        "A passkey was removed from your account and can no longer be used to sign in.",
        _TAKE_BACK,
    ),
    AccountChange.ADMIN_GRANTED: (
        "You are an administrator now",
        "Your account now has the rights of an administrator.",
        _ASK_FOR_HELP,
    ),
    AccountChange.ADMIN_REVOKED: (
        "You are no longer an administrator",
        "Your account no longer has the rights of an administrator.",
        _ASK_FOR_HELP,
    ),
    AccountChange.DEACTIVATED: (
        "Your account was deactivated",
        "Your account was deactivated, and all its sessions were ended.",
        _ASK_FOR_HELP,
    ),
    AccountChange.REACTIVATED: (
        "Your account was activated again",
        "Your account was activated again: you can sign in with your password.",
        _ASK_FOR_HELP,
    ),
    AccountChange.DELETED: (
        "Your account was deleted",
        "Your account and all its data were deleted.",
        _ASK_FOR_HELP,
    ),
}


class Purpose(StrEnum):
    """Purposes of the one-time tokens that messages contain."""

    VERIFY_EMAIL = "verify email"
    CHANGE_EMAIL = "change email"
    RESET_PASSWORD = "reset password"  # noqa: S105  # the name of a purpose


LIFETIMES = {
    Purpose.VERIFY_EMAIL: timedelta(days=3),
    Purpose.CHANGE_EMAIL: timedelta(hours=24),
    Purpose.RESET_PASSWORD: timedelta(hours=1),
}


async def commit_and_limit_messages(
    ctx: Context, kind: EmailKind, address: str, account_id: UUID | None = None
) -> None:
    """Commit, and refuse a request for a message beyond the limit of its address, account or client network.

    Requests count even if they lead to no message. Each kind of message therefore has a separate limit for each
    address, so that requests for one kind cannot prevent messages of another kind. If `account_id` is given, a further
    limit counts the account's requests for this kind, to any address. Raises TooManyRequestsError.
    """
    free = ctx.settings.throttle_account_attempts
    counters = [
        *client_counters("message asked for from address", ctx.client.ip_address, ctx.settings),
        AttemptCounter(f"message to address: {kind}", address, free),
    ]
    if account_id is not None:
        counters.append(AttemptCounter(f"message of account: {kind}", str(account_id), free))
    await ctx.throttle.commit_and_take(ctx.session, *counters)


async def commit_and_admit_sign_up(ctx: Context, address: str) -> bool:
    """Commit, and return whether a sign-up may lead to a message.

    If too many sign-ups use one address, only the message is dropped: the sign-up itself is not refused. One network
    can use up only a part of the messages that the address may get. Raises TooManyRequestsError for a network that
    requests too many messages.
    """
    network, settings = network_of(ctx.client.ip_address), ctx.settings
    asked = client_counters("message asked for from address", ctx.client.ip_address, settings)
    own = AttemptCounter("sign-up of address from network", f"{network} {address}", settings.throttle_account_attempts)
    all_ = AttemptCounter("sign-up of address", address, settings.throttle_address_attempts)
    return await ctx.throttle.commit_and_take(ctx.session, *asked, deferred=[own, all_]) is None


async def notify_owner(ctx: Context, user_id: UUID, change: AccountChange, *, address: str | None = None) -> None:
    """Notify the owner of a change, at the account's current address unless `address` is given."""
    if not ctx.settings.sends_mail:
        return
    if address is None:
        address = await ctx.session.fetch_value(ADDRESS, user_id=user_id)
    if address is not None:
        payload = {"change": change.value}
        await outbox_service.notify(ctx, EmailKind.ACCOUNT_CHANGED, address, user_id, payload, topic=change)


def link_to_application(settings: Settings, page: str, token: str) -> str | None:
    """Return the link to a page of ACCOUNT_PAGES_URL, or None if this setting is empty.

    The token is in the fragment, which browsers do not send to servers.
    """
    return f"{settings.account_pages_url.rstrip('/')}/{page}#token={token}" if settings.account_pages_url else None


async def render_verification(
    session: Session, settings: Settings, email: QueuedEmail, link_to: LinkTo = link_to_application
) -> EmailMessage | None:
    user = await session.fetch_one_or_none(ADDRESSEE, user_email=email.address)
    if user is None or not user.is_active:
        return None
    if user.email_verified_at is not None:
        # Only the message of a sign-up has a payload. A further message, sent on request, has none: a verified address
        # does not get it.
        return await render_already_registered(session, settings, email) if email.payload else None
    token = await _create_token(session, Purpose.VERIFY_EMAIL, user.id, email.address, email.payload)
    link = link_to(settings, "verify-email", token)
    return _render_with_token(settings, email, "verification", "Verify your e-mail address", token, link)


async def render_password_reset(
    session: Session, settings: Settings, email: QueuedEmail, link_to: LinkTo = link_to_application
) -> EmailMessage | None:
    user = await session.fetch_one_or_none(ADDRESSEE, user_email=email.address)
    if user is None or not user.is_active:
        return None
    token = await _create_token(session, Purpose.RESET_PASSWORD, user.id, email.address)
    link = link_to(settings, "reset-password", token)
    return _render_with_token(settings, email, "password_reset", "Set a new password", token, link)


async def render_email_change(
    session: Session, settings: Settings, email: QueuedEmail, link_to: LinkTo = link_to_application
) -> EmailMessage | None:
    """Render the request to confirm the new address, or a notice that this address already has an account.

    Returns None if the account that requested the change is deactivated or deleted.
    """
    if await _exists(session, email.address):
        return await render_already_registered(session, settings, email)
    user_id = await session.fetch_value(ACTIVE_USER, user_id=email.account_id)
    if user_id is None:
        return None
    token = await _create_token(session, Purpose.CHANGE_EMAIL, user_id, email.address)
    link = link_to(settings, "verify-email", token)
    return _render_with_token(settings, email, "email_change", "Confirm your new e-mail address", token, link)


async def render_already_registered(session: Session, settings: Settings, email: QueuedEmail) -> EmailMessage | None:
    if not await _exists(session, email.address):
        return None
    return _render(settings, email, "already_registered", "You already have an account")


async def render_email_change_notice(_session: Session, settings: Settings, email: QueuedEmail) -> EmailMessage:
    return _render(settings, email, "email_change_notice", "Your e-mail address is about to change")


async def render_account_changed(_session: Session, settings: Settings, email: QueuedEmail) -> EmailMessage:
    subject, what, advice = CHANGES[AccountChange(str(email.payload["change"]))]
    return _render(settings, email, "account_changed", subject, what=what, advice=advice)


async def render_second_factor_failures(_session: Session, settings: Settings, email: QueuedEmail) -> EmailMessage:
    subject = "Someone entered your password, but no correct code"
    return _render(settings, email, "second_factor_failures", subject)


async def render_passkey_copied(_session: Session, settings: Settings, email: QueuedEmail) -> EmailMessage:
    return _render(settings, email, "passkey_copied", "One of your passkeys was refused")


async def _exists(session: Session, address: str) -> bool:
    return await session.fetch_one_or_none(ADDRESSEE, user_email=address) is not None


async def _create_token(
    session: Session, purpose: Purpose, user_id: UUID, address: str, payload: Mapping[str, JsonValue] | None = None
) -> str:
    lifetime = LIFETIMES[purpose]
    return await one_time_tokens.create_token(session, purpose, user_id, address, lifetime=lifetime, payload=payload)


def _render_with_token(
    settings: Settings, email: QueuedEmail, template: str, subject: str, token: str, link: str | None
) -> EmailMessage:
    lifetime = _in_words(LIFETIMES[TEMPLATE_PURPOSES[template]])
    return _render(settings, email, template, subject, token=token, link=link, lifetime=lifetime)


def _render(settings: Settings, email: QueuedEmail, template: str, subject: str, **values: str | None) -> EmailMessage:
    full_subject = f"{read_project().title}: {subject[0].lower()}{subject[1:]}"
    return render_email(f"accounts/mails/{template}", email.address, full_subject, settings, **values)


def _in_words(lifetime: timedelta) -> str:
    hours = round(lifetime.total_seconds() / 3600)
    return "an hour" if hours == 1 else f"{hours} hours"


TEMPLATE_PURPOSES = {
    "verification": Purpose.VERIFY_EMAIL,
    "password_reset": Purpose.RESET_PASSWORD,
    "email_change": Purpose.CHANGE_EMAIL,
}
RENDERERS: dict[str, Renderer] = {
    EmailKind.VERIFICATION: render_verification,
    EmailKind.PASSWORD_RESET: render_password_reset,
    EmailKind.ACCOUNT_CHANGED: render_account_changed,
    EmailKind.PASSKEY_COPIED: render_passkey_copied,
    EmailKind.EMAIL_CHANGE: render_email_change,
    EmailKind.EMAIL_CHANGE_NOTICE: render_email_change_notice,
    EmailKind.SECOND_FACTOR_FAILURES: render_second_factor_failures,
}
