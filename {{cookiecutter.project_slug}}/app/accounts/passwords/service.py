from sqlalchemy import bindparam, update

from app.accounts.events import AccountEvent
from app.accounts.models import Caller, User, UserRecord
from app.accounts.password_policy import refuse_unfit_password
from app.accounts.passwords.schemas import PasswordChange
from app.accounts.queries import END_SESSIONS, PASSWORD_CHANGED, UPDATE_USER, finish_password_change
from app.accounts.scopes import format_scope
from app.accounts.second_factor.confirmation import confirm_identity
from app.accounts.sessions import service as sessions
from app.accounts.sign_in.granted_scopes import narrow_scope
from app.accounts.sign_in.service import OpenedSession
from app.core.context import Context
from app.core.db.query import Query
from app.core.errors import ConflictError
from app.core.security.password_strength import refuse_weak_password

# Changes no row unless the password is still the verified one, so that only one of two concurrent changes succeeds.
REPLACE_PASSWORD = Query(
    update(User)
    .where(User.id == bindparam("user_id"), User.password_hash == bindparam("verified_hash"))
    .values(password_hash=bindparam("new_hash"))
    .returning(User.id)
)


async def change_password(ctx: Context, caller: Caller, data: PasswordChange) -> OpenedSession:
    """Change the password, end all sessions, and begin a new one, so that copied tokens stop working."""
    user = caller.user
    scope = (await sessions.get_session(ctx.session, caller, caller.session_id)).scope
    scope = format_scope(await narrow_scope(ctx, user.id, scope))
    new_password = data.new_password.get_secret_value()
    # Check the new password first, so that a weak one does not use up a recovery code.
    await refuse_weak_password(new_password, user.email, user.name)
    with ctx.passwords.reserve():
        password_hash = await confirm_identity(ctx, caller, data)
        # Check for breaches after the confirmation: holders of copied tokens must not cause calls to another service.
        await refuse_unfit_password(ctx, new_password, user.email, user.name)
        new_hash = await ctx.passwords.hash(new_password)
    replaced = await ctx.session.fetch_value(
        REPLACE_PASSWORD, user_id=user.id, verified_hash=password_hash, new_hash=new_hash
    )
    if replaced is None:
        raise ConflictError(PASSWORD_CHANGED, code="password-changed")
    await ctx.session.run(END_SESSIONS, user_id=user.id)
    await finish_password_change(ctx, user)
    session_id = await sessions.create_session(ctx.session, ctx.settings, user.id, scope, ctx.client)
    await ctx.audit.record(AccountEvent.PASSWORD_CHANGED, user.id, actor_id=user.id, session_id=str(session_id))
    return OpenedSession(user.id, session_id, scope)


async def set_password(ctx: Context, user: UserRecord, password: str) -> None:
    """Set a user's password, and end all sessions of the user; for commands of operators."""
    await refuse_unfit_password(ctx, password, user.email, user.name)
    new_hash = await ctx.passwords.hash(password)
    await ctx.session.fetch_one_or_none(UPDATE_USER, user_id=user.id, password_hash=new_hash)
    await ctx.session.run(END_SESSIONS, user_id=user.id)
    await finish_password_change(ctx, user)
    await ctx.audit.record(AccountEvent.PASSWORD_CHANGED, user.id)
