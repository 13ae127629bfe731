"""Queries and changes that several packages of `app.accounts` share."""

from uuid import UUID

from sqlalchemy import bindparam, delete, select, text, update

from app.accounts import one_time_tokens
from app.accounts.emails import CODE_KINDS, AccountChange, EmailKind, notify_owner
from app.accounts.models import (
    KnownNetwork,
    Passkey,
    RecoveryCode,
    SecondFactor,
    SecondFactorFailures,
    User,
    UserRecord,
    UserSession,
)
from app.core.context import Context
from app.core.db.models import utc_now
from app.core.db.query import Command, Query, columns
from app.core.db.session import Session
from app.core.errors import NotFoundError
from app.core.security.throttling import network_of
from app.outbox import service as outbox_service

ADDRESS_TAKEN = "Another account has this e-mail address. Use a different address, or sign in to that account."
PASSWORD_CHANGED = "The password was changed by another request. Try again with the new password."  # noqa: S105  # an error message, not a password

COLUMNS = columns(UserRecord, User)

USER_BY_ID = Query(select(*COLUMNS).where(User.id == bindparam("user_id")), UserRecord)
USER_BY_EMAIL = Query(select(*COLUMNS).where(User.email == bindparam("user_email")), UserRecord)
UPDATE_USER = Query(update(User).where(User.id == bindparam("user_id")).returning(*COLUMNS), UserRecord)
# Lock order: user, sessions, outgoing e-mails, one-time tokens. Only the sender of e-mails locks in another order: an
# e-mail, and then the user, by inserting a token with a foreign key to the user. `key_share` selects FOR NO KEY UPDATE,
# which does not block the sender.
LOCK_USER = Query(select(User.id).where(User.id == bindparam("user_id")).with_for_update(key_share=True))
# Locks the user if the password is still the verified one.
LOCK_IF_PASSWORD = Query(
    select(User.id)
    .where(User.id == bindparam("user_id"), User.password_hash == bindparam("verified_hash"))
    .with_for_update(read=True)
)
RESET_FAILURES = Command(delete(SecondFactorFailures).where(SecondFactorFailures.user_id == bindparam("owner_id")))
END_SESSIONS = Command(delete(UserSession).where(UserSession.user_id == bindparam("user_id")))
REMEMBER_NETWORK = Command(
    text("""
    INSERT INTO known_networks (user_id, network, last_used_at) VALUES (:owner_id, :network, :now)
    ON CONFLICT (user_id, network) DO UPDATE SET last_used_at = :now
    """).bindparams(
        bindparam("owner_id", type_=KnownNetwork.user_id.type), bindparam("now", type_=KnownNetwork.last_used_at.type)
    )
)

REVOKE_ACCESS = [
    Command(delete(model).where(model.user_id == bindparam("owner_id")))
    for model in (UserSession, SecondFactor, SecondFactorFailures, Passkey, RecoveryCode, KnownNetwork)
]


async def get_user(session: Session, user_id: UUID) -> UserRecord:
    user = await session.fetch_one_or_none(USER_BY_ID, user_id=user_id)
    if user is None:
        raise NotFoundError("User not found.", code="user-not-found")
    return user


async def get_user_by_email(session: Session, email: str) -> UserRecord:
    user = await session.fetch_one_or_none(USER_BY_EMAIL, user_email=email)
    if user is None:
        raise NotFoundError("User not found.", code="user-not-found")
    return user


async def lock_user(session: Session, user_id: UUID) -> None:
    """Lock the user. Call this before other rows of the account are changed: see the lock order of LOCK_USER."""
    await session.fetch_value(LOCK_USER, user_id=user_id)


async def cancel_email_change(session: Session, user_id: UUID) -> None:
    """Lock the user, and cancel queued messages that ask to confirm a new address; call before the address changes."""
    await lock_user(session, user_id)
    await outbox_service.cancel(session, EmailKind.EMAIL_CHANGE, user_id)


async def remember_network(ctx: Context, user_id: UUID) -> None:
    """Record the client's network: failed attempts from other networks then do not lock the owner out on this one."""
    network = network_of(ctx.client.ip_address)
    await ctx.session.run(REMEMBER_NETWORK, owner_id=user_id, network=network, now=utc_now())


async def cancel_codes(session: Session, user: UserRecord) -> None:
    """Lock the user, and cancel queued messages with codes; call before an account is deactivated or deleted."""
    await lock_user(session, user.id)
    await outbox_service.cancel_all(session, CODE_KINDS, user.id, user.email)


async def revoke_access(session: Session, user_id: UUID) -> None:
    """End the user's sessions, and delete all credentials except the password.

    For an account that another person may have created, before the owner of the address takes it over.
    """
    for command in REVOKE_ACCESS:
        await session.run(command, owner_id=user_id)


async def finish_password_change(ctx: Context, user: UserRecord) -> None:
    """Cancel a pending e-mail change, revoke all one-time tokens, and notify the owner."""
    # Cancel first: this waits for a sender that is inserting a token, so that the next line revokes this token too.
    await outbox_service.cancel(ctx.session, EmailKind.EMAIL_CHANGE, user.id)
    await one_time_tokens.revoke_tokens(ctx.session, user.id)
    # Reset the count of second-factor failures, which followed sign-ins with the old password.
    await ctx.session.run(RESET_FAILURES, owner_id=user.id)
    await notify_owner(ctx, user.id, AccountChange.PASSWORD)
