"""The messages about accounts. Whether there is an account is found out here, after the answer to the request."""

from collections.abc import Callable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy import bindparam, select

from app.accounts import one_time_tokens
from app.accounts.models import User
from app.core.config import Settings
from app.core.database import Session
from app.core.email import Email, QueuedEmail, Renderer, render_email
from app.core.project import read_project
from app.core.query import Query, columns
from app.core.throttling import AttemptCounter, network_of
from app.core.toolbox import Toolbox


class AddresseeRecord(NamedTuple):
    id: UUID
    is_active: bool
    email_verified_at: datetime | None


# Locked against a change of the address: a code for the old one is revoked by it, or not made.
ADDRESSEE = Query(
    select(*columns(AddresseeRecord, User))
    .where(User.email == bindparam("user_email"))
    .with_for_update(read=True, key_share=True),
    AddresseeRecord,
)

# What leads to a page with a token; None when there is no such page, and the token is to be entered by hand.
LinkTo: TypeAlias = Callable[[Settings, str, str], str | None]

ACTIVE_USER = Query(select(User.id).where(User.id == bindparam("user_id"), User.is_active))


class EmailKind(StrEnum):
    VERIFICATION = "verification"
    ALREADY_REGISTERED = "already registered"
    PASSWORD_RESET = "password reset"  # noqa: S105  # a name
    PASSWORD_CHANGED = "password changed"  # noqa: S105  # a name
    PASSKEY_ADDED = "passkey added"
    PASSKEY_COPIED = "passkey copied"
    EMAIL_CHANGE = "email change"
    EMAIL_CHANGE_NOTICE = "email change notice"


class Purpose(StrEnum):
    """What the codes about accounts are for."""

    VERIFY_EMAIL = "verify email"
    CHANGE_EMAIL = "change email"
    RESET_PASSWORD = "reset password"  # noqa: S105  # a name


LIFETIMES = {
    Purpose.VERIFY_EMAIL: timedelta(days=3),
    Purpose.CHANGE_EMAIL: timedelta(hours=24),
    Purpose.RESET_PASSWORD: timedelta(hours=1),
}


async def limit_messages(tools: Toolbox, kind: EmailKind, address: str) -> None:
    """Nobody is flooded through this service; the caller must hold no connection. Raises TooManyRequestsError.

    Each kind by itself: some lead to no message, and must not keep somebody from those that do.
    """
    network = network_of(tools.origin.address)
    await tools.throttle.count(
        AttemptCounter("message asked for from address", network, tools.settings.throttle_address_attempts),
        AttemptCounter(f"message to address: {kind}", address, tools.settings.throttle_account_attempts),
    )


def link_to_application(settings: Settings, page: str, token: str) -> str | None:
    """In the fragment, which browsers send to no server and no other site."""
    return f"{settings.account_pages_url.rstrip('/')}/{page}#token={token}" if settings.account_pages_url else None


async def render_verification(
    session: Session, settings: Settings, email: QueuedEmail, link_to: LinkTo = link_to_application
) -> Email | None:
    user = await session.fetch_one_or_none(ADDRESSEE, user_email=email.address)
    if user is None or not user.is_active or user.email_verified_at is not None:
        return None
    token = await _create_token(session, Purpose.VERIFY_EMAIL, user.id, email.address)
    link = link_to(settings, "verify-email", token)
    return _render_with_token(settings, email, "verification", "Verify your e-mail address", token, link)


async def render_password_reset(
    session: Session, settings: Settings, email: QueuedEmail, link_to: LinkTo = link_to_application
) -> Email | None:
    user = await session.fetch_one_or_none(ADDRESSEE, user_email=email.address)
    if user is None or not user.is_active:
        return None
    token = await _create_token(session, Purpose.RESET_PASSWORD, user.id, email.address)
    link = link_to(settings, "reset-password", token)
    return _render_with_token(settings, email, "password_reset", "Set a new password", token, link)


async def render_email_change(
    session: Session, settings: Settings, email: QueuedEmail, link_to: LinkTo = link_to_application
) -> Email | None:
    """To the new address: it has to be confirmed, unless there is another account with it."""
    if await _exists(session, email.address):
        return await render_already_registered(session, settings, email)
    user_id = await session.fetch_value(ACTIVE_USER, user_id=email.account_id)
    if user_id is None:
        return None
    token = await _create_token(session, Purpose.CHANGE_EMAIL, user_id, email.address)
    link = link_to(settings, "verify-email", token)
    return _render_with_token(settings, email, "email_change", "Confirm your new address", token, link)


async def render_already_registered(session: Session, settings: Settings, email: QueuedEmail) -> Email | None:
    if not await _exists(session, email.address):
        return None
    return _render(settings, email, "already_registered", "You already have an account")


async def render_email_change_notice(_session: Session, settings: Settings, email: QueuedEmail) -> Email:
    return _render(settings, email, "email_change_notice", "Your address is about to change")


async def render_password_changed(_session: Session, settings: Settings, email: QueuedEmail) -> Email:
    return _render(settings, email, "password_changed", "Your password was changed")


async def render_passkey_added(_session: Session, settings: Settings, email: QueuedEmail) -> Email:
    return _render(settings, email, "passkey_added", "A passkey was added to your account")


async def render_passkey_copied(_session: Session, settings: Settings, email: QueuedEmail) -> Email:
    return _render(settings, email, "passkey_copied", "A passkey of yours was refused")


async def _exists(session: Session, address: str) -> bool:
    return await session.fetch_one_or_none(ADDRESSEE, user_email=address) is not None


async def _create_token(session: Session, purpose: Purpose, user_id: UUID, address: str) -> str:
    return await one_time_tokens.create_token(session, purpose, user_id, address, lifetime=LIFETIMES[purpose])


def _render_with_token(
    settings: Settings, email: QueuedEmail, template: str, subject: str, token: str, link: str | None
) -> Email:
    lifetime = _in_words(LIFETIMES[TEMPLATE_PURPOSES[template]])
    return _render(settings, email, template, subject, token=token, link=link, lifetime=lifetime)


def _render(settings: Settings, email: QueuedEmail, template: str, subject: str, **values: str | None) -> Email:
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
    EmailKind.ALREADY_REGISTERED: render_already_registered,
    EmailKind.PASSWORD_RESET: render_password_reset,
    EmailKind.PASSWORD_CHANGED: render_password_changed,
    EmailKind.PASSKEY_ADDED: render_passkey_added,
    EmailKind.PASSKEY_COPIED: render_passkey_copied,
    EmailKind.EMAIL_CHANGE: render_email_change,
    EmailKind.EMAIL_CHANGE_NOTICE: render_email_change_notice,
}
