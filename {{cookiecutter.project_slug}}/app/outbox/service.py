"""The queue of messages, in the database: a message is sent exactly if the change that it tells of is committed."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import structlog
from pydantic import JsonValue
from sqlalchemy import bindparam, delete, event, insert, or_, select, update
from sqlalchemy.sql import func

from app.core.config import Settings
from app.core.database import Session
from app.core.metrics import EMAILS
from app.core.models import utc_now
from app.core.query import Command, Query, columns, delete_batch
from app.core.throttling import AttemptCounter
from app.core.toolbox import Toolbox
from app.outbox.models import OutgoingEmail

logger = structlog.get_logger(__name__)

# Where the sessions of a database carry the event that wakes this process's sender.
WAKE = "outbox.wake"
MAX_ERROR_LENGTH = 500
FAILED_LIFETIME = timedelta(days=30)


class EmailRecord(NamedTuple):
    """A message that was claimed."""

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
# Both answers come from an index, however long the queue is.
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
    # A CTE: PostgreSQL may evaluate a plain subquery several times, and lock other rows each time.
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
# Unless somebody else has taken it meanwhile, because this took too long.
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
    """Send a message once this transaction commits, and not at all otherwise.

    Nothing bounds how many: for what users cause, count before it, as `limit_messages` does, or call `notify`.
    The payload is stored as plain text, which backups contain: put no secret in it.
    """
    await session.run(
        ENQUEUE, kind=kind, address=address, account_id=account_id, payload={**(payload or {})}, due_at=utc_now()
    )
    wake: asyncio.Event | None = session.info.get(WAKE)
    if wake is not None:
        event.listen(session.sync_session, "after_commit", lambda _session: wake.set(), once=True)


async def notify(
    tools: Toolbox,
    kind: str,
    address: str,
    account_id: UUID | None = None,
    payload: Mapping[str, JsonValue] | None = None,
    *,
    topic: str = "",
) -> None:
    """Enqueue a notice, or drop it where the address or the account gets too many of its kind.

    Notices of different topics are counted by themselves: a flood of one hides no other.
    """
    free = tools.settings.throttle_account_attempts
    counters = [AttemptCounter(f"notice to address: {kind} {topic}", address, free)]
    if account_id is not None:
        counters.append(AttemptCounter(f"notice to account: {kind} {topic}", str(account_id), free))
    if await tools.throttle.try_take(tools.session, *counters):
        await enqueue(tools.session, kind, address, account_id, payload)
    else:
        record_dropped(kind, topic)


def record_dropped(kind: str, topic: str = "") -> None:
    """Tell operators of a message that was not sent, as there were too many."""
    EMAILS.labels("dropped").inc()
    logger.warning("a message was dropped, as there were too many", kind=kind, topic=topic)


async def cancel(session: Session, kind: str, account_id: UUID) -> None:
    """Do not send what is still waiting. What is being made, with a code or without, is there when this returns."""
    await session.run(CANCEL, email_kind=kind, of_account_id=account_id)


async def cancel_all(session: Session, kinds: Sequence[str], account_id: UUID, address: str) -> None:
    """Withdraw what waits for an account or its address, whoever has asked for it."""
    await session.run(CANCEL_ALL, kinds=kinds, of_account_id=account_id, to_address=address)


async def read_state(session: Session) -> QueueState:
    return await session.fetch_one(QUEUE_STATE)


async def claim(session: Session, lease: timedelta, at_most: int) -> list[EmailRecord]:
    """Take due messages; they are due again when the lease ends, so that none is lost with its sender."""
    now = utc_now()
    return await session.fetch_all(CLAIM, now=now, leased_until=now + lease, at_most=at_most)


async def lock_email(session: Session, email: EmailRecord) -> bool:
    """Keep what was claimed from being withdrawn in this transaction; False when it was, or somebody else has it."""
    return await session.fetch_value(LOCK_EMAIL, email_id=email.id, own_attempt=email.attempts) is not None


async def delete_email(session: Session, email: EmailRecord) -> None:
    await session.run(DELETE_EMAIL, email_id=email.id)


async def reschedule(session: Session, email: EmailRecord, due_at: datetime | None, error: str) -> None:
    """Note why an attempt failed, and when the next one is due; without one the message has failed for good."""
    reason = error[:MAX_ERROR_LENGTH]
    await session.run(RESCHEDULE, email_id=email.id, own_attempt=email.attempts, new_due_at=due_at, reason=reason)


async def list_failed(session: Session) -> list[FailedEmailRecord]:
    return await session.fetch_all(FAILED)


async def retry_failed(session: Session) -> int:
    """Make all failed messages due; returns how many there were."""
    return await session.run(RETRY_FAILED, now=utc_now())


async def purge_failed(session: Session, _settings: Settings) -> int:
    """Delete what failed long ago, and return how many messages that were."""
    return await session.run(PURGE_FAILED, created_before=utc_now() - FAILED_LIFETIME)
