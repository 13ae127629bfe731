import time
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, select

from app.accounts.models import Caller, User, UserRecord, UserSession
from app.core.db.models import utc_now
from app.core.db.query import Query, columns
from app.core.db.session import Database, Session
from app.core.errors import UnauthorizedError

MAX_REMEMBERED = 10_000


class CallerRecord(NamedTuple):
    """The columns of UserRecord, followed by the session's id."""

    id: UUID
    email: str
    name: str
    is_active: bool
    is_admin: bool
    email_verified_at: datetime | None
    created_at: datetime
    updated_at: datetime
    session_id: UUID


# Both the session and its user must still be valid.
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


async def require_session(session: Session, caller: Caller) -> None:
    """Raise UnauthorizedError if the caller's session has ended since the caller was found.

    Call `lock_user` first: a new password or a deactivation, which ends all sessions of the user, then waits until the
    change that follows this check is committed.
    """
    if await find_caller(session, caller.user.id, caller.session_id) is None:
        raise UnauthorizedError("The session has ended. Sign in again.", code="session-ended")


async def find_caller(session: Session, user_id: UUID, session_id: UUID) -> Caller | None:
    found = await session.fetch_one_or_none(CALLER, user_id=user_id, session_id=session_id, now=utc_now())
    return None if found is None else Caller(UserRecord(*found[:-1]), found.session_id)


class IdentityCache:
    """Callers of the last AUTH_CACHE_SECONDS, by user and session, in this process."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._found: dict[tuple[UUID, UUID], tuple[float, Caller]] = {}

    async def get(self, database: Database, user_id: UUID, session_id: UUID) -> Caller | None:
        until, caller = self._found.get((user_id, session_id), (0.0, None))
        if caller is not None and until > self._clock():
            return caller
        caller = await self.refresh(database, user_id, session_id)
        if caller is not None and self._seconds:
            self._remember(caller)
        return caller

    async def refresh(self, database: Database, user_id: UUID, session_id: UUID) -> Caller | None:
        """Read the caller from the database, and evict the cached one; for requests that may change the account."""
        self._found.pop((user_id, session_id), None)
        # A separate database session, so that a refused request neither begins a transaction nor waits for a writer.
        async with database.read() as session:
            return await find_caller(session, user_id, session_id)

    def _remember(self, caller: Caller) -> None:
        if len(self._found) >= MAX_REMEMBERED:
            self._found.clear()
        self._found[caller.user.id, caller.session_id] = (self._clock() + self._seconds, caller)
