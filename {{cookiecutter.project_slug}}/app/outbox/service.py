"""The queue of messages, in the database: a message is sent exactly if the change that it tells of is committed."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import Row, bindparam, delete, event, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.sql import func

from app.core.config import Settings
from app.core.database import count_deleted
from app.core.models import utc_now
from app.core.statements import delete_some
from app.outbox.models import OutgoingEmail

EmailRow: TypeAlias = Row[*tuple[Any, ...]]

# Where the sessions of a database carry the event that wakes this process's sender.
WAKE = "outbox.wake"
MAX_ERROR_LENGTH = 500
FAILED_LIFETIME = timedelta(days=30)

EMAIL_COLUMNS = (
    OutgoingEmail.id,
    OutgoingEmail.kind,
    OutgoingEmail.address,
    OutgoingEmail.account_id,
    OutgoingEmail.payload,
    OutgoingEmail.attempts,
)

ENQUEUE = insert(OutgoingEmail)
# Both answers come from an index, however long the queue is.
QUEUE_STATE = select(
    select(func.min(OutgoingEmail.due_at)).scalar_subquery().label("next_due_at"),
    select(OutgoingEmail.created_at)
    .where(OutgoingEmail.due_at.is_not(None))
    .order_by(OutgoingEmail.id)
    .limit(1)
    .scalar_subquery()
    .label("oldest_created_at"),
)
_DUE = (
    select(OutgoingEmail.id)
    .where(OutgoingEmail.due_at <= bindparam("now"))
    .order_by(OutgoingEmail.due_at)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
    # Of its own, for PostgreSQL may run a subquery again and again, and lock other rows each time.
    .cte("due")
)
CLAIM = (
    update(OutgoingEmail)
    .where(OutgoingEmail.id.in_(select(_DUE.c.id)))
    .values(due_at=bindparam("leased_until"), attempts=OutgoingEmail.attempts + 1)
    .returning(*EMAIL_COLUMNS)
)
WITHDRAW = delete(OutgoingEmail).where(
    OutgoingEmail.kind == bindparam("email_kind"), OutgoingEmail.account_id == bindparam("of_account_id")
)
HOLD = (
    select(OutgoingEmail.id)
    .where(OutgoingEmail.id == bindparam("email_id"), OutgoingEmail.attempts == bindparam("own_attempt"))
    .with_for_update()
)
FORGET = delete(OutgoingEmail).where(OutgoingEmail.id == bindparam("email_id"))
# Unless somebody else has taken it meanwhile, because this took too long.
RESCHEDULE = (
    update(OutgoingEmail)
    .where(OutgoingEmail.id == bindparam("email_id"), OutgoingEmail.attempts == bindparam("own_attempt"))
    .values(due_at=bindparam("new_due_at"), error=bindparam("reason"))
)
FAILED = (
    select(OutgoingEmail.id, OutgoingEmail.kind, OutgoingEmail.created_at, OutgoingEmail.error)
    .where(OutgoingEmail.due_at.is_(None))
    .order_by(OutgoingEmail.id)
)
PURGE_FAILED = delete_some(
    OutgoingEmail, OutgoingEmail.due_at.is_(None), OutgoingEmail.created_at <= bindparam("created_before")
)
RETRY_FAILED = (
    update(OutgoingEmail)
    .where(OutgoingEmail.due_at.is_(None))
    .values(due_at=bindparam("now"), attempts=0)
    .returning(OutgoingEmail.id)
)


@dataclass(frozen=True)
class QueueState:
    next_due_at: datetime | None
    oldest_created_at: datetime | None


async def enqueue(
    session: AsyncSession,
    kind: str,
    address: str,
    account_id: UUID | None = None,
    payload: Mapping[str, JsonValue] | None = None,
) -> None:
    """Send a message once this transaction commits, and not at all otherwise.

    The payload is stored as plain text, which backups contain: put no secret in it.
    """
    values = {"kind": kind, "address": address, "account_id": account_id, "payload": {**(payload or {})}}
    await session.execute(ENQUEUE, {**values, "due_at": utc_now()})
    wake: asyncio.Event | None = session.info.get(WAKE)
    if wake is not None:
        event.listen(session.sync_session, "after_commit", lambda _session: wake.set(), once=True)


async def withdraw(session: AsyncSession, kind: str, account_id: UUID) -> None:
    """Do not send what is still waiting. What is being made, with a code or without, is there when this returns."""
    await session.execute(WITHDRAW, {"email_kind": kind, "of_account_id": account_id})


async def read_state(session: AsyncSession) -> QueueState:
    row = (await session.execute(QUEUE_STATE)).one()
    return QueueState(row.next_due_at, row.oldest_created_at)


async def claim(session: AsyncSession, lease: timedelta, at_most: int) -> list[EmailRow]:
    """Take due messages; they are due again when the lease ends, so that none is lost with its sender."""
    now = utc_now()
    parameters = {"now": now, "leased_until": now + lease, "at_most": at_most}
    return list((await session.execute(CLAIM, parameters)).all())


async def hold(session: AsyncSession, email: EmailRow) -> bool:
    """Keep what was claimed from being withdrawn in this transaction; False when it was, or somebody else has it."""
    return await session.scalar(HOLD, {"email_id": email.id, "own_attempt": email.attempts}) is not None


async def forget(session: AsyncSession, email: EmailRow) -> None:
    await session.execute(FORGET, {"email_id": email.id})


async def reschedule(session: AsyncSession, email: EmailRow, due_at: datetime | None, error: str) -> None:
    """Note why an attempt failed, and when the next one is due; without one the message has failed for good."""
    parameters = {"email_id": email.id, "own_attempt": email.attempts, "new_due_at": due_at}
    await session.execute(RESCHEDULE, {**parameters, "reason": error[:MAX_ERROR_LENGTH]})


async def list_failed(session: AsyncSession) -> list[EmailRow]:
    return list((await session.execute(FAILED)).all())


async def retry_failed(session: AsyncSession) -> int:
    """Make all failed messages due; returns how many there were."""
    return len((await session.execute(RETRY_FAILED, {"now": utc_now()})).all())


async def purge_failed(session: AsyncSession, _settings: Settings) -> int:
    """Delete what failed long ago, and return how many messages that were."""
    return await count_deleted(session, PURGE_FAILED, {"created_before": utc_now() - FAILED_LIFETIME})
