from datetime import datetime
from functools import cache
from typing import NamedTuple
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from app.core.database import Session, release_connection
from app.core.exceptions import ConflictError, NotFoundError, UnprocessableError
from app.core.models import utc_now
from app.core.pagination import PageRequest, PageResult, paginate
from app.core.passwords import refuse_weak_password
from app.core.query import Command, Query, columns
from app.core.schemas import dump_changes
from app.core.throttling import AttemptCounter
from app.core.toolbox import Toolbox
from app.outbox import service as outbox_service
from app.users import one_time_tokens
from app.users.emails import EmailKind, Purpose, limit_messages
from app.users.events import AccountEvent
from app.users.models import Caller, User, UserRecord, UserSession
from app.users.schemas import EmailChange, PasswordChange, UserAdminUpdate, UserCreate, UserUpdate

NEWEST = "-created_at"


class CallerRecord(NamedTuple):
    """A user's columns, and the session's id behind them."""

    id: UUID
    email: str
    name: str
    is_active: bool
    is_admin: bool
    email_verified_at: datetime | None
    created_at: datetime
    updated_at: datetime
    session_id: UUID


COLUMNS = columns(UserRecord, User)

# The tokens' session and its user in one query: neither works once the other is gone.
CALLER = Query(
    select(*columns(CallerRecord, User, session_id=UserSession.id))
    .join(UserSession, UserSession.user_id == User.id)
    .where(
        UserSession.id == bindparam("session_id"),
        UserSession.expires_at > bindparam("now"),
        User.id == bindparam("user_id"),
        User.is_active,
    ),
    CallerRecord,
)
USER_BY_ID = Query(select(*COLUMNS).where(User.id == bindparam("user_id")), UserRecord)
USER_BY_EMAIL = Query(select(*COLUMNS).where(User.email == bindparam("user_email")), UserRecord)
PASSWORD_HASH = Query(select(User.password_hash).where(User.id == bindparam("user_id")))
# The other database understands it, too. Nothing comes back where the address is taken, and no transaction is spoilt.
CREATE_USER = Query(insert(User).on_conflict_do_nothing(index_elements=[User.email]).returning(*COLUMNS), UserRecord)
UPDATE_USER = Query(update(User).where(User.id == bindparam("user_id")).returning(*COLUMNS), UserRecord)
# Only while the password is still the one that was verified: two changes at once have one winner.
REPLACE_PASSWORD = Query(
    update(User)
    .where(User.id == bindparam("user_id"), User.password_hash == bindparam("verified_hash"))
    .values(password_hash=bindparam("new_hash"))
    .returning(User.id)
)
# Locks the user against a change of the password that was verified.
HOLD_PASSWORD = Query(
    select(User.id)
    .where(User.id == bindparam("user_id"), User.password_hash == bindparam("verified_hash"))
    .with_for_update(read=True)
)
# What changes an account locks the user first, then its sessions, its messages and its codes. With `key_share` it lets
# those go on who make a message: they hold the message, and need the user for the code in it.
LOCK_USER = Query(select(User.id).where(User.id == bindparam("user_id")).with_for_update(key_share=True))
ACTIVE_ADMINS = Query(
    select(User.id).where(User.is_admin, User.is_active).order_by(User.id).with_for_update(key_share=True)
)
DELETE_USER = Command(delete(User).where(User.id == bindparam("user_id")))
END_SESSIONS = Command(delete(UserSession).where(UserSession.user_id == bindparam("user_id")))
END_OTHER_SESSIONS = Command(
    delete(UserSession).where(
        UserSession.user_id == bindparam("user_id"), UserSession.id != bindparam("kept_session_id")
    )
)


async def find_caller(session: Session, user_id: UUID, session_id: UUID) -> Caller | None:
    found = await session.fetch_one_or_none(CALLER, user_id=user_id, session_id=session_id, now=utc_now())
    return None if found is None else Caller(UserRecord(*found[:-1]), found.session_id)


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


async def list_users(session: Session, page: PageRequest) -> PageResult[UserRecord]:
    query = _list_query(after_cursor=page.cursor is not None)
    return page.build(await session.fetch_all(query, **page.parameters(NEWEST)), NEWEST)


@cache
def _list_query(*, after_cursor: bool) -> Query[UserRecord]:
    return paginate(select(*COLUMNS), UserRecord, User, descending=True, after_cursor=after_cursor)


async def sign_up(tools: Toolbox, data: UserCreate) -> UserRecord | None:
    """Return the new user; where addresses are verified, nobody: the answer must not tell whether there is one."""
    if not tools.settings.email_verification_required:
        return await create_user(tools, data)
    await limit_messages(tools, EmailKind.VERIFICATION, data.email)
    try:
        user = await create_user(tools, data)
    except ConflictError:
        # As much work as for a new address: the time must not tell either.
        await tools.audit.record(AccountEvent.SIGN_UP_REFUSED, None)
        await outbox_service.enqueue(tools.session, EmailKind.ALREADY_REGISTERED, data.email)
    else:
        await outbox_service.enqueue(tools.session, EmailKind.VERIFICATION, data.email, user.id)
    return None


async def create_user(tools: Toolbox, data: UserCreate, *, is_admin: bool = False) -> UserRecord:
    """An administrator is made by an operator, who answers for the address."""
    await refuse_weak_password(data.password.get_secret_value(), data.email, data.name)
    password_hash = await tools.security.hash_password(data.password.get_secret_value())
    user = await tools.session.fetch_one_or_none(
        CREATE_USER,
        email=data.email,
        name=data.name,
        password_hash=password_hash,
        is_admin=is_admin,
        email_verified_at=utc_now() if is_admin else None,
    )
    if user is None:
        raise ConflictError("There is already an account with this e-mail address.")
    await tools.audit.record(AccountEvent.USER_CREATED, user.id, is_admin=is_admin)
    return user


async def update_user(
    tools: Toolbox, user: UserRecord, data: UserUpdate | UserAdminUpdate, *, actor_id: UUID | None = None
) -> UserRecord:
    """A deactivated user's sessions end at once. Without an actor it is an operator, who may lock anybody out."""
    changes = dump_changes(data)
    if not changes:
        return user
    if actor_id is not None and not (changes.get("is_admin", True) and changes.get("is_active", True)):
        await _keep_an_admin(tools.session, user)
    if changes.get("email", user.email) != user.email:
        changes["email_verified_at"] = None
        await _withdraw_email_change(tools.session, user.id)
    try:
        updated = await tools.session.fetch_one_or_none(UPDATE_USER, user_id=user.id, **changes)
    except IntegrityError as error:
        raise ConflictError("There is already an account with this e-mail address.") from error
    if updated is None:
        raise NotFoundError("There is no such user.")
    if updated.email != user.email:
        await one_time_tokens.revoke_tokens(tools.session, user.id)
    if not updated.is_active:
        await tools.session.run(END_SESSIONS, user_id=user.id)
    await tools.audit.record(AccountEvent.USER_CHANGED, user.id, actor_id=actor_id, fields=sorted(changes))
    return updated


async def lock_user(session: Session, user_id: UUID) -> None:
    """Come before what else of the account is changed: two that lock in different orders would wait for each other."""
    await session.fetch_value(LOCK_USER, user_id=user_id)


async def _withdraw_email_change(session: Session, user_id: UUID) -> None:
    """Before the address changes, which locks the user against who makes a message, too."""
    await lock_user(session, user_id)
    await outbox_service.withdraw(session, EmailKind.EMAIL_CHANGE, user_id)


async def _keep_an_admin(session: Session, user: UserRecord) -> None:
    """Refuse to take the last administrator away; the lock makes two who remove each other take turns."""
    if await session.fetch_all(ACTIVE_ADMINS) == [(user.id,)]:
        raise ConflictError("This is the last administrator: make another one first.")


async def confirm_password(tools: Toolbox, user: UserRecord, password: SecretStr) -> str:
    """Return the hash of the right password. A stolen token is no way to guess it: attempts are counted.

    Raises UnprocessableError.
    """
    password_hash = await tools.session.fetch_value(PASSWORD_HASH, user_id=user.id)
    await release_connection(tools.session)
    free = tools.settings.throttle_account_attempts
    counter = AttemptCounter("password of account", str(user.id), free, is_decided=True)
    await tools.throttle.count(counter)
    check = await tools.security.check_password(password.get_secret_value(), password_hash)
    if password_hash is None or not check.is_correct:
        await tools.throttle.decide(tools.session, counter)
        await tools.audit.record(AccountEvent.PASSWORD_REFUSED, user.id, actor_id=user.id)
        raise UnprocessableError("The current password is not right.", keeps_changes=True)
    await tools.throttle.forget(tools.session, counter)
    # Committed here: if the request fails for another reason, the right password does not count as an attempt.
    await release_connection(tools.session)
    return password_hash


async def change_password(tools: Toolbox, caller: Caller, data: PasswordChange) -> None:
    """End every other session; the caller's own stays."""
    user = caller.user
    password_hash = await confirm_password(tools, user, data.current_password)
    await refuse_weak_password(data.new_password.get_secret_value(), user.email, user.name)
    new_hash = await tools.security.hash_password(data.new_password.get_secret_value())
    replaced = await tools.session.fetch_value(
        REPLACE_PASSWORD, user_id=user.id, verified_hash=password_hash, new_hash=new_hash
    )
    if replaced is None:
        raise ConflictError("The password was changed at the same time.")
    await tools.session.run(END_OTHER_SESSIONS, user_id=user.id, kept_session_id=caller.session_id)
    await _settle_password(tools, user)
    await tools.audit.record(AccountEvent.PASSWORD_CHANGED, user.id, actor_id=user.id)


async def set_password(tools: Toolbox, user: UserRecord, password: str) -> None:
    """For operators: end every session, whoever holds them."""
    await refuse_weak_password(password, user.email, user.name)
    new_hash = await tools.security.hash_password(password)
    await tools.session.fetch_one_or_none(UPDATE_USER, user_id=user.id, password_hash=new_hash)
    await tools.session.run(END_SESSIONS, user_id=user.id)
    await _settle_password(tools, user)
    await tools.audit.record(AccountEvent.PASSWORD_CHANGED, user.id)


async def _settle_password(tools: Toolbox, user: UserRecord) -> None:
    # In this order: a code that is being made for a new address is there, and revoked, once its message is withdrawn.
    await outbox_service.withdraw(tools.session, EmailKind.EMAIL_CHANGE, user.id)
    await one_time_tokens.revoke_tokens(tools.session, user.id)
    if tools.settings.sends_mail:
        await outbox_service.enqueue(tools.session, EmailKind.PASSWORD_CHANGED, user.email, user.id)


async def reset_password(tools: Toolbox, token: str, password: str) -> None:
    """End every session. Who reads the mail of the address has thereby verified it."""
    found = await one_time_tokens.find_token(tools.session, token, Purpose.RESET_PASSWORD)
    assert found.user_id is not None  # noqa: S101  # for the type checker; codes of these purposes have a user
    user = await get_user(tools.session, found.user_id)
    await release_connection(tools.session)
    await refuse_weak_password(password, user.email, user.name)
    new_hash = await tools.security.hash_password(password)
    verified_at = user.email_verified_at or utc_now()
    changes = {"password_hash": new_hash, "email_verified_at": verified_at}
    await tools.session.fetch_one_or_none(UPDATE_USER, user_id=user.id, **changes)
    await one_time_tokens.use_token(tools.session, token, Purpose.RESET_PASSWORD)
    await tools.session.run(END_SESSIONS, user_id=user.id)
    await _settle_password(tools, user)
    await tools.audit.record(AccountEvent.PASSWORD_RESET, user.id)


async def request_email_change(tools: Toolbox, user: UserRecord, data: EmailChange) -> None:
    """Nothing changes before the new address is confirmed; the old one hears of it now."""
    password_hash = await confirm_password(tools, user, data.current_password)
    await limit_messages(tools, EmailKind.EMAIL_CHANGE, data.new_email)
    if await tools.session.fetch_value(HOLD_PASSWORD, user_id=user.id, verified_hash=password_hash) is None:
        raise ConflictError("The password was changed at the same time.")
    await outbox_service.enqueue(tools.session, EmailKind.EMAIL_CHANGE, data.new_email, user.id)
    await outbox_service.enqueue(tools.session, EmailKind.EMAIL_CHANGE_NOTICE, user.email, user.id)
    await tools.audit.record(AccountEvent.EMAIL_CHANGE_REQUESTED, user.id, actor_id=user.id)


async def verify_email(tools: Toolbox, token: str) -> None:
    """Verify the account's address, or make the new one that was asked for the account's."""
    purposes = (Purpose.VERIFY_EMAIL, Purpose.CHANGE_EMAIL)
    found = await one_time_tokens.find_token(tools.session, token, *purposes)
    assert found.user_id is not None  # noqa: S101  # see above
    changes = {"email": found.address, "email_verified_at": utc_now()}
    await _withdraw_email_change(tools.session, found.user_id)
    try:
        await tools.session.fetch_one_or_none(UPDATE_USER, user_id=found.user_id, **changes)
    except IntegrityError as error:
        raise ConflictError("There is already an account with this e-mail address.") from error
    await one_time_tokens.use_token(tools.session, token, *purposes)
    await one_time_tokens.revoke_tokens(tools.session, found.user_id)
    is_change = found.purpose == Purpose.CHANGE_EMAIL
    event = AccountEvent.EMAIL_CHANGED if is_change else AccountEvent.EMAIL_VERIFIED
    await tools.audit.record(event, found.user_id)


async def delete_user(tools: Toolbox, user: UserRecord, *, actor_id: UUID) -> None:
    await _keep_an_admin(tools.session, user)
    await tools.session.run(DELETE_USER, user_id=user.id)
    await tools.audit.record(AccountEvent.USER_DELETED, user.id, actor_id=actor_id)
