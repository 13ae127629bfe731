from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select, update

from app.accounts.events import AccountEvent
from app.accounts.models import Caller, User, UserRecord, UserSession
from app.accounts.queries import END_SESSIONS
from app.core.audit.log import Audit
from app.core.config.settings import Settings
from app.core.db.models import utc_now
from app.core.db.query import Command, Query, columns, delete_batch
from app.core.db.session import Session
from app.core.errors import NotFoundError
from app.core.http.request import ClientInfo


class SessionRecord(NamedTuple):
    id: UUID
    scope: str
    device: str
    address: str | None
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    is_current: bool


class ExtendedRecord(NamedTuple):
    user_id: UUID
    scope: str


COLUMNS = columns(SessionRecord, UserSession, is_current=UserSession.id == bindparam("current_session_id"))
_SESSIONS = (
    select(*COLUMNS)
    .where(UserSession.user_id == bindparam("owner_id"), UserSession.expires_at > bindparam("now"))
    .order_by(UserSession.last_used_at.desc(), UserSession.id.desc())
)
SESSIONS = Query(_SESSIONS, SessionRecord)
SESSION_BY_ID = Query(_SESSIONS.where(UserSession.id == bindparam("session_id")), SessionRecord)
CREATE_SESSION = Query(insert(UserSession).returning(UserSession.id))
CREATED_AT = Query(select(UserSession.created_at).where(UserSession.id == bindparam("session_id")))
EXTEND_SESSION = Query(
    update(UserSession)
    .where(
        UserSession.id == bindparam("session_id"),
        UserSession.expires_at > bindparam("now"),
        User.id == UserSession.user_id,
        User.is_active,
    )
    .values(
        expires_at=bindparam("new_expires_at"),
        last_used_at=bindparam("now"),
        address=bindparam("new_address"),
        device=bindparam("new_device"),
    )
    .returning(*columns(ExtendedRecord, UserSession)),
    ExtendedRecord,
)
END_SESSION = Query(delete(UserSession).where(UserSession.id == bindparam("session_id")).returning(UserSession.user_id))
END_ALL_SESSIONS = Command(delete(UserSession))
PURGE_OWN_SESSIONS = Command(
    delete(UserSession).where(UserSession.user_id == bindparam("owner_id"), UserSession.expires_at <= bindparam("now"))
)
PURGE_SESSIONS = delete_batch(UserSession, UserSession.expires_at <= bindparam("now"))
# Ends all sessions of an account but the `kept` most recently used ones.
END_SURPLUS_SESSIONS = Command(
    delete(UserSession).where(
        UserSession.id.in_(
            select(UserSession.id)
            .where(UserSession.user_id == bindparam("owner_id"))
            .order_by(UserSession.last_used_at.desc(), UserSession.id.desc())
            .offset(bindparam("kept"))
            # SQLite has no OFFSET without LIMIT.
            .limit(bindparam("at_most"))
        )
    )
)
# More than an account can have, since each sign-in enforces MAX_SESSIONS_PER_USER.
MANY = 1_000_000


async def list_sessions(session: Session, caller: Caller) -> list[SessionRecord]:
    return await session.fetch_all(
        SESSIONS, owner_id=caller.user.id, current_session_id=caller.session_id, now=utc_now()
    )


async def get_session(session: Session, caller: Caller, session_id: UUID) -> SessionRecord:
    """Return a session of the caller. Raises NotFoundError, also for a session of another user."""
    found = await session.fetch_one_or_none(
        SESSION_BY_ID,
        owner_id=caller.user.id,
        current_session_id=caller.session_id,
        session_id=session_id,
        now=utc_now(),
    )
    if found is None:
        raise NotFoundError("Session not found.", code="session-not-found")
    return found


async def create_session(session: Session, settings: Settings, user_id: UUID, scope: str, client: ClientInfo) -> UUID:
    """Create a session; end expired ones, and the least recently used ones beyond MAX_SESSIONS_PER_USER."""
    now = utc_now()
    await session.run(PURGE_OWN_SESSIONS, owner_id=user_id, now=now)
    kept = settings.max_sessions_per_user - 1
    await session.run(END_SURPLUS_SESSIONS, owner_id=user_id, kept=kept, at_most=MANY)
    (session_id,) = await session.fetch_one(
        CREATE_SESSION,
        user_id=user_id,
        scope=scope,
        address=client.ip_address,
        device=client.user_agent,
        created_at=now,
        last_used_at=now,
        expires_at=_session_end(settings, now, created_at=now),
    )
    return session_id


async def extend_session(
    session: Session, settings: Settings, session_id: UUID, client: ClientInfo
) -> ExtendedRecord | None:
    """Extend a session, and return its user and scope, or None if it has ended or its user is deactivated.

    A session that is older than SESSION_MAX_LIFETIME_SECONDS is ended instead of extended.
    """
    now = created_at = utc_now()
    if settings.session_max_lifetime_seconds is not None:
        created_at = await session.fetch_value(CREATED_AT, session_id=session_id) or now
    end = _session_end(settings, now, created_at)
    extended = await session.fetch_one_or_none(
        EXTEND_SESSION,
        session_id=session_id,
        now=now,
        new_expires_at=end,
        new_address=client.ip_address,
        new_device=client.user_agent,
    )
    return extended if end > now else None


async def end_session(
    session: Session, audit: Audit, session_id: UUID, event: AccountEvent = AccountEvent.SESSION_ENDED
) -> None:
    """End a session, which invalidates its access and refresh tokens. Does nothing if it has ended already."""
    user_id = await session.fetch_value(END_SESSION, session_id=session_id)
    if user_id is not None:
        await audit.record(event, user_id, actor_id=user_id, session_id=str(session_id))


async def end_all(session: Session, audit: Audit, user: UserRecord | None) -> int:
    """End the sessions of one account, or of all accounts, as an operator; return their number."""
    if user is None:
        count = await session.run(END_ALL_SESSIONS)
    else:
        count = await session.run(END_SESSIONS, user_id=user.id)
    await audit.record(AccountEvent.SESSIONS_ENDED, user.id if user else None, count=count)
    return count


async def purge_sessions(session: Session) -> int:
    return await session.run(PURGE_SESSIONS, now=utc_now())


def _session_end(settings: Settings, now: datetime, created_at: datetime) -> datetime:
    end = now + timedelta(seconds=settings.refresh_token_lifetime_seconds)
    if settings.session_max_lifetime_seconds is None:
        return end
    return min(end, created_at + timedelta(seconds=settings.session_max_lifetime_seconds))
