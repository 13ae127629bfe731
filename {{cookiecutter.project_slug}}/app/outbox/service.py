"""Transactional outbox: an e-mail is sent if and only if the change that it reports is committed."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import structlog
from pydantic import JsonValue
from sqlalchemy import bindparam, delete, event, insert, or_, select, update
from sqlalchemy.sql import func

from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.models import utc_now
from app.core.db.query import Command, Query, columns, delete_batch
from app.core.db.session import Session
from app.core.observability.metrics import EMAILS
from app.core.security.throttling import AttemptCounter
from app.outbox.models import OutgoingEmail

logger = structlog.get_logger(__name__)

# Key of `Database.info`, for the event that wakes this process's sender.
WAKE = "outbox.wake"
MAX_ERROR_LENGTH = 500
FAILED_LIFETIME = timedelta(days=30)


class EmailRecord(NamedTuple):
    """A claimed e-mail."""

    id: UUID
    kind: str
    address: str
    account_id: UUID | None
    payload: dict[str, JsonValue]
    attempts: int


class FailedEmailRecord(NamedTuple):
    id: UUID
    kind: str
    created_at: datetime
    error: str


class QueueState(NamedTuple):
    next_due_at: datetime | None
    oldest_created_at: datetime | None


ENQUEUE = Command(insert(OutgoingEmail))
# Index lookups: the cost does not depend on the length of the queue.
QUEUE_STATE = Query(
    select(
        select(func.min(OutgoingEmail.due_at)).scalar_subquery().label("next_due_at"),
        select(OutgoingEmail.created_at)
        .where(OutgoingEmail.due_at.is_not(None))
        .order_by(OutgoingEmail.id)
        .limit(1)
        .scalar_subquery()
        .label("oldest_created_at"),
    ),
    QueueState,
)
_DUE = (
    select(OutgoingEmail.id)
    .where(OutgoingEmail.due_at <= bindparam("now"))
    .order_by(OutgoingEmail.due_at)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
    # A CTE, because PostgreSQL may evaluate a plain subquery several times and lock different rows each time.
    .cte("due")
)
CLAIM = Query(
    update(OutgoingEmail)
    .where(OutgoingEmail.id.in_(select(_DUE.c.id)))
    .values(due_at=bindparam("leased_until"), attempts=OutgoingEmail.attempts + 1)
    .returning(*columns(EmailRecord, OutgoingEmail)),
    EmailRecord,
)
CANCEL = Command(
    delete(OutgoingEmail).where(
        OutgoingEmail.kind == bindparam("email_kind"), OutgoingEmail.account_id == bindparam("of_account_id")
    )
)
CANCEL_ALL = Command(
    delete(OutgoingEmail).where(
        OutgoingEmail.kind.in_(bindparam("kinds", expanding=True)),
        or_(OutgoingEmail.account_id == bindparam("of_account_id"), OutgoingEmail.address == bindparam("to_address")),
    )
)
LOCK_EMAIL = Query(
    select(OutgoingEmail.id)
    .where(OutgoingEmail.id == bindparam("email_id"), OutgoingEmail.attempts == bindparam("own_attempt"))
    .with_for_update()
)
DELETE_EMAIL = Command(delete(OutgoingEmail).where(OutgoingEmail.id == bindparam("email_id")))
# Does nothing if the lease has ended and another process has claimed the e-mail.
RESCHEDULE = Command(
    update(OutgoingEmail)
    .where(OutgoingEmail.id == bindparam("email_id"), OutgoingEmail.attempts == bindparam("own_attempt"))
    .values(due_at=bindparam("new_due_at"), error=bindparam("reason"))
)
FAILED = Query(
    select(*columns(FailedEmailRecord, OutgoingEmail)).where(OutgoingEmail.due_at.is_(None)).order_by(OutgoingEmail.id),
    FailedEmailRecord,
)
PURGE_FAILED = delete_batch(
    OutgoingEmail, OutgoingEmail.due_at.is_(None), OutgoingEmail.created_at <= bindparam("created_before")
)
RETRY_FAILED = Command(
    update(OutgoingEmail).where(OutgoingEmail.due_at.is_(None)).values(due_at=bindparam("now"), attempts=0)
)


async def enqueue(
    session: Session,
    kind: str,
    address: str,
    account_id: UUID | None = None,
    payload: Mapping[str, JsonValue] | None = None,
) -> None:
    """Send an e-mail after this transaction commits.

    The number of e-mails is not limited here: for e-mails that users cause, call `notify`, or check a limit first, as
    `commit_and_limit_messages` does. The payload is stored unencrypted, also in backups: it must not contain secrets.
    """
    await session.run(
        ENQUEUE, kind=kind, address=address, account_id=account_id, payload={**(payload or {})}, due_at=utc_now()
    )
    wake: asyncio.Event | None = session.info.get(WAKE)
    if wake is not None:
        event.listen(session.sync_session, "after_commit", lambda _session: wake.set(), once=True)


async def notify(
    ctx: Context,
    kind: str,
    address: str,
    account_id: UUID | None = None,
    payload: Mapping[str, JsonValue] | None = None,
    *,
    topic: str = "",
) -> None:
    """Enqueue a notice, or drop it if its address or account gets too many notices of this kind.

    Topics are counted separately, so that many notices of one topic do not suppress notices of other topics.
    """
    free = ctx.settings.throttle_account_attempts
    counters = [AttemptCounter(f"notice to address: {kind} {topic}", address, free)]
    if account_id is not None:
        counters.append(AttemptCounter(f"notice to account: {kind} {topic}", str(account_id), free))
    if await ctx.throttle.try_take(ctx.session, *counters):
        await enqueue(ctx.session, kind, address, account_id, payload)
    else:
        record_dropped(kind, topic)


def record_dropped(kind: str, topic: str = "") -> None:
    """Log and count a dropped e-mail."""
    EMAILS.labels("dropped").inc()
    logger.warning("e-mail dropped, too many of its kind", kind=kind, topic=topic)


async def cancel(session: Session, kind: str, account_id: UUID) -> None:
    """Cancel the waiting e-mails of one kind that belong to the account.

    Waits while a sender renders such an e-mail, so that the caller can then revoke the token that the sender inserted.
    """
    await session.run(CANCEL, email_kind=kind, of_account_id=account_id)


async def cancel_all(session: Session, kinds: Sequence[str], account_id: UUID, address: str) -> None:
    """Cancel the waiting e-mails of these kinds that belong to the account or go to the address."""
    await session.run(CANCEL_ALL, kinds=kinds, of_account_id=account_id, to_address=address)


async def read_state(session: Session) -> QueueState:
    return await session.fetch_one(QUEUE_STATE)


async def claim(session: Session, lease: timedelta, at_most: int) -> list[EmailRecord]:
    """Claim due e-mails. They are due again when the lease ends, so that a crash loses none."""
    now = utc_now()
    return await session.fetch_all(CLAIM, now=now, leased_until=now + lease, at_most=at_most)


async def lock_email(session: Session, email: EmailRecord) -> bool:
    """Lock a claimed e-mail against `cancel`. Return False if it was cancelled, or claimed by another process."""
    return await session.fetch_value(LOCK_EMAIL, email_id=email.id, own_attempt=email.attempts) is not None


async def delete_email(session: Session, email: EmailRecord) -> None:
    await session.run(DELETE_EMAIL, email_id=email.id)


async def reschedule(session: Session, email: EmailRecord, due_at: datetime | None, error: str) -> None:
    """Record an attempt's error and the next attempt's time; `due_at` is None if the e-mail has failed for good."""
    reason = error[:MAX_ERROR_LENGTH]
    await session.run(RESCHEDULE, email_id=email.id, own_attempt=email.attempts, new_due_at=due_at, reason=reason)


async def list_failed(session: Session) -> list[FailedEmailRecord]:
    return await session.fetch_all(FAILED)


async def retry_failed(session: Session) -> int:
    """Make all failed e-mails due, and return their number."""
    return await session.run(RETRY_FAILED, now=utc_now())


async def purge_failed(session: Session, _settings: Settings) -> int:
    """Delete failed e-mails that were created more than FAILED_LIFETIME ago, and return their number."""
    return await session.run(PURGE_FAILED, created_before=utc_now() - FAILED_LIFETIME)
