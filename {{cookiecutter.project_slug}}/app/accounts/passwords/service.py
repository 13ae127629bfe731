from sqlalchemy import bindparam, delete, select, update

from app.accounts import one_time_tokens
from app.accounts.emails import AccountChange, EmailKind, notify_owner
from app.accounts.events import AccountEvent
from app.accounts.models import Caller, User, UserRecord, UserSession
from app.accounts.passwords.schemas import PasswordChange
from app.accounts.queries import END_SESSIONS, UPDATE_USER
from app.accounts.second_factor.confirmation import confirm_identity
from app.core.exceptions import ConflictError
from app.core.passwords import refuse_weak_password
from app.core.query import Command, Query
from app.core.toolbox import Toolbox
from app.outbox import service as outbox_service

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
END_OTHER_SESSIONS = Command(
    delete(UserSession).where(
        UserSession.user_id == bindparam("user_id"), UserSession.id != bindparam("kept_session_id")
    )
)


async def change_password(tools: Toolbox, caller: Caller, data: PasswordChange) -> None:
    """End every other session; the caller's own stays."""
    user = caller.user
    password_hash = await confirm_identity(tools, caller, data)
    await refuse_weak_password(data.new_password.get_secret_value(), user.email, user.name)
    new_hash = await tools.security.hash_password(data.new_password.get_secret_value())
    replaced = await tools.session.fetch_value(
        REPLACE_PASSWORD, user_id=user.id, verified_hash=password_hash, new_hash=new_hash
    )
    if replaced is None:
        raise ConflictError("The password was changed at the same time.")
    await tools.session.run(END_OTHER_SESSIONS, user_id=user.id, kept_session_id=caller.session_id)
    await settle_password(tools, user)
    await tools.audit.record(AccountEvent.PASSWORD_CHANGED, user.id, actor_id=user.id)


async def set_password(tools: Toolbox, user: UserRecord, password: str) -> None:
    """For operators: end every session, whoever holds them."""
    await refuse_weak_password(password, user.email, user.name)
    new_hash = await tools.security.hash_password(password)
    await tools.session.fetch_one_or_none(UPDATE_USER, user_id=user.id, password_hash=new_hash)
    await tools.session.run(END_SESSIONS, user_id=user.id)
    await settle_password(tools, user)
    await tools.audit.record(AccountEvent.PASSWORD_CHANGED, user.id)


async def settle_password(tools: Toolbox, user: UserRecord) -> None:
    # In this order: a code that is being made for a new address is there, and revoked, once its message is withdrawn.
    await outbox_service.withdraw(tools.session, EmailKind.EMAIL_CHANGE, user.id)
    await one_time_tokens.revoke_tokens(tools.session, user.id)
    await notify_owner(tools, user.id, AccountChange.PASSWORD)
