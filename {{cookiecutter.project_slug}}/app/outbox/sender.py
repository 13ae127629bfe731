"""The task of each worker process that sends what is in the outbox."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import structlog
from aiosmtplib import SMTPException
from sqlalchemy.exc import SQLAlchemyError

from app.core.config import Settings
from app.core.database import Database
from app.core.email import QueuedEmail, RefusedEmailError, Renderer, compose, deliver
from app.core.exceptions import first_line
from app.core.metrics import EMAILS, EMAILS_PENDING_SECONDS
from app.core.models import utc_now
from app.outbox import service
from app.outbox.service import EmailRecord

logger = structlog.get_logger(__name__)

CONCURRENCY = 4
STOP_TIMEOUT_SECONDS = 3
MAX_DOUBLINGS = 30


class Sender:
    def __init__(
        self, settings: Settings, database: Database, renderers: Mapping[str, Renderer], concurrency: int = CONCURRENCY
    ) -> None:
        self._settings = settings
        self._database = database
        self._renderers = renderers
        self._at_once = concurrency
        # The mail server has its turn between two of the database.
        database_seconds = settings.database_pool_timeout_seconds + settings.database_statement_timeout_seconds
        self._lease = timedelta(seconds=settings.smtp_timeout_seconds + 2 * database_seconds)
        self._wake = asyncio.Event()
        database.info[service.WAKE] = self._wake
        self._stops = False
        self._is_unreachable = False

    async def run(self) -> None:
        """Send until told to stop; what is enqueued in this process wakes it at once."""
        while not self._stops:
            self._wake.clear()
            pause = await self._send_all_due()
            if not self._stops:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake.wait()

    def stop(self) -> None:
        self._stops = True
        self._wake.set()

    async def _send_all_due(self) -> float:
        """Return how many seconds to wait for the next look."""
        try:
            while not self._stops and await self.send_due():
                pass
            pause = await self._update_metrics()
        except Exception as error:
            # Once, and not every few seconds. Whatever it is, messages must go out when it is over.
            if not self._is_unreachable:
                logger.warning("the outbox is out of reach", error=type(error).__name__, reason=first_line(error))
            self._is_unreachable = True
            return self._settings.outbox_poll_seconds
        self._is_unreachable = False
        return pause

    async def send_due(self) -> int:
        """Attempt to send what is due, a few messages at once; returns how many."""
        # Only a look, which is cheap: a claim would take SQLite's one lock.
        async with self._database.read() as session:
            state = await service.read_state(session)
        if state.next_due_at is None or state.next_due_at > utc_now():
            return 0
        async with self._database.write() as session:
            emails = await service.claim(session, self._lease, self._at_once)
        outcomes = await asyncio.gather(*(self._attempt(email) for email in emails), return_exceptions=True)
        for error in outcomes:
            if error is not None:
                raise error
        return len(emails)

    async def _update_metrics(self) -> float:
        async with self._database.read() as session:
            state = await service.read_state(session)
        now = utc_now()
        oldest = state.oldest_created_at or now
        EMAILS_PENDING_SECONDS.set((now - oldest).total_seconds())
        poll = self._settings.outbox_poll_seconds
        if state.next_due_at is None:
            return poll
        return min(poll, max(0, (state.next_due_at - now).total_seconds()))

    async def _attempt(self, email: EmailRecord) -> None:
        try:
            await self._send(email)
        except RefusedEmailError as error:
            await self._give_up(email, f"refused: {error}")
        except (SMTPException, OSError, SQLAlchemyError) as error:
            await self._retry(email, f"{type(error).__name__}: {first_line(error)}")
        except Exception as error:
            # A mistake of ours, in one kind of message: the others go on.
            logger.exception("a message cannot be made", email_id=str(email.id), kind=email.kind)
            await self._retry(email, f"{type(error).__name__}: {first_line(error)}")

    async def _send(self, email: EmailRecord) -> None:
        queued = QueuedEmail(
            id=email.id,
            kind=email.kind,
            address=email.address,
            account_id=email.account_id,
            payload=email.payload,
        )
        # Committed before it is sent: what the message holds must work when it arrives.
        async with self._database.write() as session:
            if not await service.lock_email(session, email):
                return
            rendered = await self._renderers[email.kind](session, self._settings, queued)
        if rendered is not None:
            await deliver(self._settings, compose(self._settings, email.id, rendered))
        async with self._database.write() as session:
            await service.delete_email(session, email)
        if rendered is not None:
            EMAILS.labels("sent").inc()

    async def _retry(self, email: EmailRecord, reason: str) -> None:
        if email.attempts > self._settings.email_retry_limit:
            await self._give_up(email, reason)
            return
        delay = retry_delay(self._settings, email.attempts)
        EMAILS.labels("retried").inc()
        logger.warning("a message was not sent, and will be tried again", email_id=str(email.id), reason=reason)
        async with self._database.write() as session:
            await service.reschedule(session, email, utc_now() + delay, reason)

    async def _give_up(self, email: EmailRecord, reason: str) -> None:
        EMAILS.labels("failed").inc()
        logger.error("a message was given up", email_id=str(email.id), kind=email.kind, reason=reason)
        async with self._database.write() as session:
            await service.reschedule(session, email, None, reason)


def retry_delay(settings: Settings, attempts: int) -> timedelta:
    """Double with each attempt, and scatter: a server that comes back is not met by all at once."""
    doublings = min(attempts - 1, MAX_DOUBLINGS)
    longest = min(settings.email_retry_seconds * 2**doublings, settings.email_retry_max_seconds)
    return timedelta(seconds=longest * random.uniform(0.5, 1))  # noqa: S311  # no secret


@asynccontextmanager
async def run_sender(settings: Settings, database: Database, renderers: Mapping[str, Renderer]) -> AsyncIterator[None]:
    """Send in the background for as long as the service runs."""
    sender = Sender(settings, database, renderers)
    task = asyncio.create_task(sender.run(), name="outbox")
    try:
        yield
    finally:
        sender.stop()
        # What is not done by then is sent by another process, when the lease ends.
        await asyncio.wait([task], timeout=STOP_TIMEOUT_SECONDS)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
