from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Row, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.audit import Audit
from app.core.config import Settings
from app.core.database import count_deleted
from app.core.exceptions import NotFoundError
from app.core.models import utc_now
from app.core.requests import Origin
from app.core.statements import delete_some, prepare
from app.users.events import AccountEvent
from app.users.models import Session, User
from app.users.service import UserRow

SessionRow: TypeAlias = Row[*tuple[Any, ...]]

SESSION_COLUMNS = (
    Session.id,
    Session.scope,
    Session.device,
    Session.address,
    Session.created_at,
    Session.last_used_at,
    Session.expires_at,
    (Session.id == bindparam("current_session_id")).label("is_current"),
)
SESSIONS = (
    select(*SESSION_COLUMNS)
    .where(Session.user_id == bindparam("owner_id"), Session.expires_at > bindparam("now"))
    .order_by(Session.last_used_at.desc(), Session.id.desc())
)
SESSION_BY_ID = SESSIONS.where(Session.id == bindparam("session_id"))
CREATE_SESSION = prepare(insert(Session).returning(Session.id))
EXTEND_SESSION = prepare(
    update(Session)
    .where(
        Session.id == bindparam("session_id"),
        Session.expires_at > bindparam("now"),
        User.id == Session.user_id,
        User.is_active,
    )
    .values(
        expires_at=bindparam("new_expires_at"),
        last_used_at=bindparam("now"),
        address=bindparam("new_address"),
        device=bindparam("new_device"),
    )
    .returning(Session.user_id, Session.scope)
)
END_SESSION = prepare(delete(Session).where(Session.id == bindparam("session_id")).returning(Session.user_id))
PURGE_OWN_SESSIONS = prepare(
    delete(Session).where(Session.user_id == bindparam("owner_id"), Session.expires_at <= bindparam("now"))
)
PURGE_SESSIONS = delete_some(Session, Session.expires_at <= bindparam("now"))
# All but the most recently used.
END_SURPLUS_SESSIONS = prepare(
    delete(Session).where(
        Session.id.in_(
            select(Session.id)
            .where(Session.user_id == bindparam("owner_id"))
            .order_by(Session.last_used_at.desc(), Session.id.desc())
            .offset(bindparam("kept"))
            # SQLite knows no OFFSET without it.
            .limit(bindparam("at_most"))
        )
    )
)
# No account can have more: each sign-in leaves the number at the limit of its time.
MANY = 1_000_000


async def list_sessions(session: AsyncSession, user: UserRow) -> list[SessionRow]:
    parameters = {"owner_id": user.id, "current_session_id": user.session_id, "now": utc_now()}
    return list((await session.execute(SESSIONS, parameters)).all())


async def get_session(session: AsyncSession, user: UserRow, session_id: UUID) -> SessionRow:
    """Return a session of the user; someone else's is not found."""
    parameters = {
        "owner_id": user.id,
        "current_session_id": user.session_id,
        "session_id": session_id,
        "now": utc_now(),
    }
    row = (await session.execute(SESSION_BY_ID, parameters)).one_or_none()
    if row is None:
        raise NotFoundError("There is no such session.")
    return row


async def create_session(session: AsyncSession, settings: Settings, user_id: UUID, scope: str, origin: Origin) -> UUID:
    """End the least recently used ones beyond the account's limit, and those that have expired."""
    now = utc_now()
    await session.execute(PURGE_OWN_SESSIONS, {"owner_id": user_id, "now": now})
    surplus = {"owner_id": user_id, "kept": settings.max_sessions_per_user - 1, "at_most": MANY}
    await session.execute(END_SURPLUS_SESSIONS, surplus)
    values = {
        "user_id": user_id,
        "scope": scope,
        "address": origin.address,
        "device": origin.device,
        "created_at": now,
        "last_used_at": now,
        "expires_at": _session_end(settings, now),
    }
    session_id: UUID = (await session.execute(CREATE_SESSION, values)).scalars().one()
    return session_id


async def extend_session(
    session: AsyncSession, settings: Settings, session_id: UUID, origin: Origin
) -> tuple[UUID, str] | None:
    """Return the session's user and scope, or None when it has ended or its user is deactivated."""
    now = utc_now()
    parameters = {
        "session_id": session_id,
        "now": now,
        "new_expires_at": _session_end(settings, now),
        "new_address": origin.address,
        "new_device": origin.device,
    }
    row = (await session.execute(EXTEND_SESSION, parameters)).one_or_none()
    return None if row is None else (row.user_id, row.scope)


async def end_session(
    session: AsyncSession, audit: Audit, session_id: UUID, event: AccountEvent = AccountEvent.SESSION_ENDED
) -> None:
    """Its tokens of both kinds stop to work; one that has ended already is no error."""
    user_id = await session.scalar(END_SESSION, {"session_id": session_id})
    if user_id is not None:
        await audit.record(event, user_id, actor_id=user_id, session_id=str(session_id))


async def purge_sessions(session: AsyncSession) -> int:
    return await count_deleted(session, PURGE_SESSIONS, {"now": utc_now()})


def _session_end(settings: Settings, now: datetime) -> datetime:
    return now + timedelta(seconds=settings.refresh_token_lifetime_seconds)
