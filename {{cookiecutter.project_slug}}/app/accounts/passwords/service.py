from sqlalchemy import bindparam, update

from app.accounts.events import AccountEvent
from app.accounts.models import Caller, User, UserRecord
from app.accounts.passwords.schemas import PasswordChange
from app.accounts.queries import END_SESSIONS, PASSWORD_CHANGED, UPDATE_USER, finish_password_change
from app.accounts.scopes import format_scope
from app.accounts.second_factor.confirmation import confirm_identity
from app.accounts.sessions import service as sessions
from app.accounts.sign_in.service import OpenedSession, narrow_scope
from app.core.breached_passwords import refuse_unfit_password
from app.core.exceptions import ConflictError
from app.core.passwords import refuse_weak_password
from app.core.query import Query
from app.core.toolbox import Toolbox

# Only if the password is still the verified one: of two concurrent changes, one wins.
REPLACE_PASSWORD = Query(
    update(User)
    .where(User.id == bindparam("user_id"), User.password_hash == bindparam("verified_hash"))
    .values(password_hash=bindparam("new_hash"))
    .returning(User.id)
)


async def change_password(tools: Toolbox, caller: Caller, data: PasswordChange) -> OpenedSession:
    """Change the password, end all sessions, and begin a new one, so that copied tokens stop working."""
    user = caller.user
    scope = (await sessions.get_session(tools.session, caller, caller.session_id)).scope
    scope = format_scope(await narrow_scope(tools, user.id, scope))
    new_password = data.new_password.get_secret_value()
    # First, so that a refused password does not use up a recovery code.
    await refuse_weak_password(new_password, user.email, user.name)
    with tools.security.reserve_hash():
        password_hash = await confirm_identity(tools, caller, data)
        # Afterwards: it may call another service, which the holder of a copied token must not cause.
        await refuse_unfit_password(tools, new_password, user.email, user.name)
        new_hash = await tools.security.hash_password(new_password)
    replaced = await tools.session.fetch_value(
        REPLACE_PASSWORD, user_id=user.id, verified_hash=password_hash, new_hash=new_hash
    )
    if replaced is None:
        raise ConflictError(PASSWORD_CHANGED, code="password-changed")
    await tools.session.run(END_SESSIONS, user_id=user.id)
    await finish_password_change(tools, user)
    session_id = await sessions.create_session(tools.session, tools.settings, user.id, scope, tools.origin)
    await tools.audit.record(AccountEvent.PASSWORD_CHANGED, user.id, actor_id=user.id, session_id=str(session_id))
    return OpenedSession(user.id, session_id, scope)


async def set_password(tools: Toolbox, user: UserRecord, password: str) -> None:
    """Set a user's password as an operator, and end all sessions."""
    await refuse_unfit_password(tools, password, user.email, user.name)
    new_hash = await tools.security.hash_password(password)
    await tools.session.fetch_one_or_none(UPDATE_USER, user_id=user.id, password_hash=new_hash)
    await tools.session.run(END_SESSIONS, user_id=user.id)
    await finish_password_change(tools, user)
    await tools.audit.record(AccountEvent.PASSWORD_CHANGED, user.id)
