from functools import cache
from uuid import UUID

from sqlalchemy import bindparam, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from app.accounts import one_time_tokens
from app.accounts.emails import AccountChange, notify_owner
from app.accounts.events import AccountEvent
from app.accounts.models import User, UserRecord
from app.accounts.password_policy import refuse_unfit_password
from app.accounts.queries import ADDRESS_TAKEN, COLUMNS, END_SESSIONS, UPDATE_USER, cancel_codes, cancel_email_change
from app.accounts.quotas import commit_and_limit_changes
from app.accounts.users.schemas import UserAdminUpdate, UserCreate, UserUpdate
from app.core.context import Context
from app.core.db.models import utc_now
from app.core.db.query import Command, Query
from app.core.db.session import Session
from app.core.errors import ConflictError, NotFoundError
from app.core.http.pagination import PageRequest, PageResult, paginate
from app.core.http.schemas import changed_fields

NEWEST = "-created_at"


# SQLAlchemy's `insert` for PostgreSQL works in SQLite as well. If the address is taken, the statement returns no row,
# and the transaction stays usable.
CREATE_USER = Query(insert(User).on_conflict_do_nothing(index_elements=[User.email]).returning(*COLUMNS), UserRecord)
ACTIVE_ADMINS = Query(
    select(User.id).where(User.is_admin, User.is_active).order_by(User.id).with_for_update(key_share=True)
)
DELETE_USER = Command(delete(User).where(User.id == bindparam("user_id")))


async def list_users(session: Session, page: PageRequest) -> PageResult[UserRecord]:
    query = _list_query(after_cursor=page.cursor is not None)
    return page.build(await session.fetch_all(query, **page.parameters(NEWEST)), NEWEST)


@cache
def _list_query(*, after_cursor: bool) -> Query[UserRecord]:
    return paginate(select(*COLUMNS), UserRecord, User, descending=True, after_cursor=after_cursor)


async def create_user(ctx: Context, data: UserCreate, *, is_admin: bool = False) -> UserRecord:
    """Create a user. The address of an administrator counts as verified, since an operator has given it.

    Raises ConflictError if the address is taken.
    """
    user = await add_user(ctx, data, await hash_password(ctx, data), is_admin=is_admin)
    if user is None:
        raise ConflictError(ADDRESS_TAKEN, code="address-taken")
    return user


async def hash_password(ctx: Context, data: UserCreate) -> str:
    """Hash the password. Raises UnprocessableError if it is weak."""
    await refuse_unfit_password(ctx, data.password.get_secret_value(), data.email, data.name)
    return await ctx.passwords.hash(data.password.get_secret_value())


async def add_user(ctx: Context, data: UserCreate, password_hash: str, *, is_admin: bool = False) -> UserRecord | None:
    """Create a user, or return None if the address has an account."""
    user = await ctx.session.fetch_one_or_none(
        CREATE_USER,
        email=data.email,
        name=data.name,
        password_hash=password_hash,
        is_admin=is_admin,
        email_verified_at=utc_now() if is_admin else None,
    )
    if user is not None:
        await ctx.audit.record(AccountEvent.USER_CREATED, user.id, is_admin=is_admin)
    return user


async def update_user(
    ctx: Context, user: UserRecord, data: UserUpdate | UserAdminUpdate, *, actor_id: UUID | None = None
) -> UserRecord:
    """Change a user. Deactivation ends all sessions and revokes all codes.

    Without `actor_id`, an operator makes the change, and may remove the last administrator. If users change their own
    account, the number of changes is limited (THROTTLE_ACCOUNT_CHANGES), and counting a change commits the transaction
    so far. Raises ConflictError and TooManyRequestsError.
    """
    changes = changed_fields(data)
    if not changes:
        return user
    if actor_id == user.id:
        await commit_and_limit_changes(ctx, "profile", user.id)
    if actor_id is not None and not (changes.get("is_admin", True) and changes.get("is_active", True)):
        await _require_another_admin(ctx.session, user)
    if changes.get("email", user.email) != user.email:
        changes["email_verified_at"] = None
        await cancel_email_change(ctx.session, user.id)
    if not changes.get("is_active", True):
        await cancel_codes(ctx.session, user)
    try:
        updated = await ctx.session.fetch_one_or_none(UPDATE_USER, user_id=user.id, **changes)
    except IntegrityError as error:
        raise ConflictError(ADDRESS_TAKEN, code="address-taken") from error
    if updated is None:
        raise NotFoundError("User not found.", code="user-not-found")
    if not updated.is_active:
        await ctx.session.run(END_SESSIONS, user_id=user.id)
    if updated.email != user.email or not updated.is_active:
        await one_time_tokens.revoke_tokens(ctx.session, user.id)
    for change in _list_changes(user, updated):
        await notify_owner(ctx, user.id, change, address=user.email)
    sent = {name: [getattr(user, name), getattr(updated, name)] for name in sorted(changed_fields(data))}
    await ctx.audit.record(AccountEvent.USER_CHANGED, user.id, actor_id=actor_id, changes=sent)
    return updated


def _list_changes(before: UserRecord, after: UserRecord) -> list[AccountChange]:
    """Return the changes that the owner is notified of."""
    changes = []
    if after.email != before.email:
        changes.append(AccountChange.EMAIL)
    if after.is_admin != before.is_admin:
        changes.append(AccountChange.ADMIN_GRANTED if after.is_admin else AccountChange.ADMIN_REVOKED)
    if after.is_active != before.is_active:
        changes.append(AccountChange.REACTIVATED if after.is_active else AccountChange.DEACTIVATED)
    return changes


def is_sensitive(user: UserRecord, data: UserAdminUpdate) -> bool:
    """Return whether anything except the name changes: such a change needs a confirmation."""
    return any(value != getattr(user, name) for name, value in changed_fields(data).items() if name != "name")


async def _require_another_admin(session: Session, user: UserRecord) -> None:
    """Raise ConflictError if the user is the last active administrator.

    The query locks all active administrators, so that two of them cannot remove each other at the same time.
    """
    if await session.fetch_all(ACTIVE_ADMINS) == [(user.id,)]:
        raise ConflictError("This is the last administrator. Appoint another one first.", code="last-administrator")


async def delete_user(ctx: Context, user: UserRecord, *, actor_id: UUID) -> None:
    await _require_another_admin(ctx.session, user)
    await cancel_codes(ctx.session, user)
    await ctx.session.run(DELETE_USER, user_id=user.id)
    await notify_owner(ctx, user.id, AccountChange.DELETED, address=user.email)
    await ctx.audit.record(AccountEvent.USER_DELETED, user.id, actor_id=actor_id)
