"""What several subjects of accounts ask and change."""

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
from app.core.database import Session
from app.core.exceptions import NotFoundError
from app.core.models import utc_now
from app.core.query import Command, Query, columns
from app.core.throttling import network_of
from app.core.toolbox import Toolbox
from app.outbox import service as outbox_service

COLUMNS = columns(UserRecord, User)

USER_BY_ID = Query(select(*COLUMNS).where(User.id == bindparam("user_id")), UserRecord)
USER_BY_EMAIL = Query(select(*COLUMNS).where(User.email == bindparam("user_email")), UserRecord)
UPDATE_USER = Query(update(User).where(User.id == bindparam("user_id")).returning(*COLUMNS), UserRecord)
# Lock order: user, sessions, outgoing e-mails, one-time tokens. `key_share` lets the sender go on, which holds an
# e-mail and inserts a token for the user.
LOCK_USER = Query(select(User.id).where(User.id == bindparam("user_id")).with_for_update(key_share=True))
# Locks the user against a change of the password that was verified.
LOCK_IF_PASSWORD = Query(
    select(User.id)
    .where(User.id == bindparam("user_id"), User.password_hash == bindparam("verified_hash"))
    .with_for_update(read=True)
)
RESET_FAILURES = Command(delete(SecondFactorFailures).where(SecondFactorFailures.user_id == bindparam("owner_id")))
END_SESSIONS = Command(delete(UserSession).where(UserSession.user_id == bindparam("user_id")))
# Both databases understand it.
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
        raise NotFoundError("There is no such user.")
    return user


async def get_user_by_email(session: Session, email: str) -> UserRecord:
    user = await session.fetch_one_or_none(USER_BY_EMAIL, user_email=email)
    if user is None:
        raise NotFoundError("There is no such user.")
    return user


async def lock_user(session: Session, user_id: UUID) -> None:
    """Come before what else of the account is changed: two that lock in different orders would wait for each other."""
    await session.fetch_value(LOCK_USER, user_id=user_id)


async def cancel_email_change(session: Session, user_id: UUID) -> None:
    """Before the address changes, which locks the user against who makes a message, too."""
    await lock_user(session, user_id)
    await outbox_service.cancel(session, EmailKind.EMAIL_CHANGE, user_id)


async def remember_network(tools: Toolbox, user_id: UUID) -> None:
    """From where the owner has acted, the attempts of strangers elsewhere no longer keep them out."""
    network = network_of(tools.origin.address)
    await tools.session.run(REMEMBER_NETWORK, owner_id=user_id, network=network, now=utc_now())


async def cancel_codes(session: Session, user: UserRecord) -> None:
    """Before an account is deactivated or deleted: no message that waits makes a code afterwards."""
    await lock_user(session, user.id)
    await outbox_service.cancel_all(session, CODE_KINDS, user.id, user.email)


async def revoke_access(session: Session, user_id: UUID) -> None:
    """Take away every way in but the password, from an account that passes to the person who reads its mail."""
    for command in REVOKE_ACCESS:
        await session.run(command, owner_id=user_id)


async def finish_password_change(tools: Toolbox, user: UserRecord) -> None:
    """End what was begun with the old password, and tell the owner of the new one."""
    # In this order: a code that is being made for a new address is there, and revoked, once its message is withdrawn.
    await outbox_service.cancel(tools.session, EmailKind.EMAIL_CHANGE, user.id)
    await one_time_tokens.revoke_tokens(tools.session, user.id)
    # Whoever knew the former password does not know this one.
    await tools.session.run(RESET_FAILURES, owner_id=user.id)
    await notify_owner(tools, user.id, AccountChange.PASSWORD)
