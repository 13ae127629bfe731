from functools import cache
from typing import Any, TypeAlias
from uuid import UUID

from pydantic import SecretStr
from sqlalchemy import Row, Select, bindparam, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import release_connection
from app.core.exceptions import ConflictError, NotFoundError, UnprocessableError
from app.core.models import utc_now
from app.core.pagination import PageRequest, Slice, paginate
from app.core.passwords import refuse_weak_password
from app.core.schemas import dump_changes
from app.core.statements import prepare
from app.core.throttling import Bucket
from app.core.toolbox import Toolbox
from app.outbox import service as outbox_service
from app.users import one_time_tokens
from app.users.emails import EmailKind, Purpose, limit_messages
from app.users.events import AccountEvent
from app.users.models import Session, User
from app.users.schemas import EmailChange, PasswordChange, UserAdminUpdate, UserCreate, UserUpdate

UserRow: TypeAlias = Row[*tuple[Any, ...]]

USER_COLUMNS = (
    User.id,
    User.email,
    User.name,
    User.is_active,
    User.is_admin,
    User.email_verified_at,
    User.created_at,
    User.updated_at,
)

# The tokens' session and its user in one look: neither works once the other is gone.
CALLER = prepare(
    select(*USER_COLUMNS, Session.id.label("session_id"))
    .join(Session, Session.user_id == User.id)
    .where(
        Session.id == bindparam("session_id"),
        Session.expires_at > bindparam("now"),
        User.id == bindparam("user_id"),
        User.is_active,
    )
)
USER_BY_ID = prepare(select(*USER_COLUMNS).where(User.id == bindparam("user_id")))
USER_BY_EMAIL = select(*USER_COLUMNS).where(User.email == bindparam("user_email"))
PASSWORD_HASH = select(User.password_hash).where(User.id == bindparam("user_id"))
# The other database understands it, too. Nothing comes back where the address is taken, and no transaction is spoilt.
CREATE_USER = prepare(insert(User).on_conflict_do_nothing(index_elements=[User.email]).returning(*USER_COLUMNS))
UPDATE_USER = update(User).where(User.id == bindparam("user_id")).returning(*USER_COLUMNS)
# Only while the password is still the one that was verified: two changes at once have one winner.
REPLACE_PASSWORD = (
    update(User)
    .where(User.id == bindparam("user_id"), User.password_hash == bindparam("verified_hash"))
    .values(password_hash=bindparam("new_hash"))
    .returning(User.id)
)
# Locks the user against a change of the password that was verified.
HOLD_PASSWORD = (
    select(User.id)
    .where(User.id == bindparam("user_id"), User.password_hash == bindparam("verified_hash"))
    .with_for_update(read=True)
)
# What changes an account locks the user first, then its sessions, its messages and its codes. With `key_share` it lets
# those go on who make a message: they hold the message, and need the user for the code in it.
LOCK_USER = select(User.id).where(User.id == bindparam("user_id")).with_for_update(key_share=True)
ACTIVE_ADMINS = select(User.id).where(User.is_admin, User.is_active).order_by(User.id).with_for_update(key_share=True)
DELETE_USER = delete(User).where(User.id == bindparam("user_id"))
END_SESSIONS = delete(Session).where(Session.user_id == bindparam("user_id"))
END_OTHER_SESSIONS = END_SESSIONS.where(Session.id != bindparam("kept_session_id"))


async def find_caller(session: AsyncSession, user_id: UUID, session_id: UUID) -> UserRow | None:
    parameters = {"user_id": user_id, "session_id": session_id, "now": utc_now()}
    return (await session.execute(CALLER, parameters)).one_or_none()


async def get_user(session: AsyncSession, user_id: UUID) -> UserRow:
    user = (await session.execute(USER_BY_ID, {"user_id": user_id})).one_or_none()
    if user is None:
        raise NotFoundError("There is no such user.")
    return user


async def get_user_by_email(session: AsyncSession, email: str) -> UserRow:
    user = (await session.execute(USER_BY_EMAIL, {"user_email": email})).one_or_none()
    if user is None:
        raise NotFoundError("There is no such user.")
    return user


async def list_users(session: AsyncSession, page: PageRequest) -> Slice:
    sort = "-created_at"
    statement = _list_statement(continued=page.cursor is not None)
    rows = (await session.execute(statement, page.parameters(sort))).all()
    return page.cut(rows, sort)


@cache
def _list_statement(*, continued: bool) -> Select[*tuple[Any, ...]]:
    statement: Select[*tuple[Any, ...]] = select(*USER_COLUMNS)
    return paginate(statement, User, descending=True, continued=continued)


async def sign_up(tools: Toolbox, data: UserCreate) -> UserRow | None:
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


async def create_user(tools: Toolbox, data: UserCreate, *, is_admin: bool = False) -> UserRow:
    """An administrator is made by an operator, who answers for the address."""
    await refuse_weak_password(data.password.get_secret_value(), data.email, data.name)
    password_hash = await tools.security.hash_password(data.password.get_secret_value())
    values = {"email": data.email, "name": data.name, "password_hash": password_hash, "is_admin": is_admin}
    values["email_verified_at"] = utc_now() if is_admin else None
    user: UserRow | None = (await tools.session.execute(CREATE_USER, values)).one_or_none()
    if user is None:
        raise ConflictError("There is already an account with this e-mail address.")
    await tools.audit.record(AccountEvent.USER_CREATED, user.id, is_admin=is_admin)
    return user


async def update_user(
    tools: Toolbox, user: UserRow, data: UserUpdate | UserAdminUpdate, *, actor_id: UUID | None = None
) -> UserRow:
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
        updated = (await tools.session.execute(UPDATE_USER, {"user_id": user.id, **changes})).one_or_none()
    except IntegrityError as error:
        raise ConflictError("There is already an account with this e-mail address.") from error
    if updated is None:
        raise NotFoundError("There is no such user.")
    if updated.email != user.email:
        await one_time_tokens.revoke_tokens(tools.session, user.id)
    if not updated.is_active:
        await tools.session.execute(END_SESSIONS, {"user_id": user.id})
    await tools.audit.record(AccountEvent.USER_CHANGED, user.id, actor_id=actor_id, fields=sorted(changes))
    return updated


async def lock_user(session: AsyncSession, user_id: UUID) -> None:
    """Come before what else of the account is changed: two that lock in different orders would wait for each other."""
    await session.execute(LOCK_USER, {"user_id": user_id})


async def _withdraw_email_change(session: AsyncSession, user_id: UUID) -> None:
    """Before the address changes, which locks the user against who makes a message, too."""
    await lock_user(session, user_id)
    await outbox_service.withdraw(session, EmailKind.EMAIL_CHANGE, user_id)


async def _keep_an_admin(session: AsyncSession, user: UserRow) -> None:
    """Refuse to take the last administrator away; the lock makes two who remove each other take turns."""
    if (await session.scalars(ACTIVE_ADMINS)).all() == [user.id]:
        raise ConflictError("This is the last administrator: make another one first.")


async def confirm_password(tools: Toolbox, user: UserRow, password: SecretStr) -> str:
    """Return the hash of the right password. A stolen token is no way to guess it: attempts are counted.

    Raises UnprocessableError.
    """
    password_hash: str | None = await tools.session.scalar(PASSWORD_HASH, {"user_id": user.id})
    await release_connection(tools.session)
    bucket = Bucket("password of account", str(user.id), tools.settings.throttle_account_attempts)
    await tools.throttle.take(bucket)
    check = await tools.security.check_password(password.get_secret_value(), password_hash)
    if password_hash is None or not check.is_correct:
        await tools.audit.record(AccountEvent.PASSWORD_REFUSED, user.id, actor_id=user.id)
        raise UnprocessableError("The current password is not right.", keeps_changes=True)
    await tools.throttle.forget(tools.session, bucket)
    return password_hash


async def change_password(tools: Toolbox, user: UserRow, data: PasswordChange) -> None:
    """End every other session; the caller's own stays."""
    password_hash = await confirm_password(tools, user, data.current_password)
    await release_connection(tools.session)
    await refuse_weak_password(data.new_password.get_secret_value(), user.email, user.name)
    new_hash = await tools.security.hash_password(data.new_password.get_secret_value())
    parameters = {"user_id": user.id, "verified_hash": password_hash, "new_hash": new_hash}
    if await tools.session.scalar(REPLACE_PASSWORD, parameters) is None:
        raise ConflictError("The password was changed at the same time.")
    await tools.session.execute(END_OTHER_SESSIONS, {"user_id": user.id, "kept_session_id": user.session_id})
    await _settle_password(tools, user)
    await tools.audit.record(AccountEvent.PASSWORD_CHANGED, user.id, actor_id=user.id)


async def set_password(tools: Toolbox, user: UserRow, password: str) -> None:
    """For operators: end every session, whoever holds them."""
    await refuse_weak_password(password, user.email, user.name)
    new_hash = await tools.security.hash_password(password)
    await tools.session.execute(UPDATE_USER, {"user_id": user.id, "password_hash": new_hash})
    await tools.session.execute(END_SESSIONS, {"user_id": user.id})
    await _settle_password(tools, user)
    await tools.audit.record(AccountEvent.PASSWORD_CHANGED, user.id)


async def _settle_password(tools: Toolbox, user: UserRow) -> None:
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
    await tools.session.execute(UPDATE_USER, {"user_id": user.id, **changes})
    await one_time_tokens.use_token(tools.session, token, Purpose.RESET_PASSWORD)
    await tools.session.execute(END_SESSIONS, {"user_id": user.id})
    await _settle_password(tools, user)
    await tools.audit.record(AccountEvent.PASSWORD_RESET, user.id)


async def request_email_change(tools: Toolbox, user: UserRow, data: EmailChange) -> None:
    """Nothing changes before the new address is confirmed; the old one hears of it now."""
    password_hash = await confirm_password(tools, user, data.current_password)
    await release_connection(tools.session)
    await limit_messages(tools, EmailKind.EMAIL_CHANGE, data.new_email)
    if await tools.session.scalar(HOLD_PASSWORD, {"user_id": user.id, "verified_hash": password_hash}) is None:
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
        await tools.session.execute(UPDATE_USER, {"user_id": found.user_id, **changes})
    except IntegrityError as error:
        raise ConflictError("There is already an account with this e-mail address.") from error
    await one_time_tokens.use_token(tools.session, token, *purposes)
    await one_time_tokens.revoke_tokens(tools.session, found.user_id)
    is_change = found.purpose == Purpose.CHANGE_EMAIL
    event = AccountEvent.EMAIL_CHANGED if is_change else AccountEvent.EMAIL_VERIFIED
    await tools.audit.record(event, found.user_id)


async def delete_user(tools: Toolbox, user: UserRow, *, actor_id: UUID) -> None:
    await _keep_an_admin(tools.session, user)
    await tools.session.execute(DELETE_USER, {"user_id": user.id})
    await tools.audit.record(AccountEvent.USER_DELETED, user.id, actor_id=actor_id)
