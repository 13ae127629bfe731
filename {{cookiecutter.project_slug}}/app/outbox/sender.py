"""The background task of each worker process that sends the e-mails of the outbox."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

import structlog
from aiosmtplib import SMTPException
from sqlalchemy.exc import SQLAlchemyError

from app.core.config.settings import Settings
from app.core.db.models import utc_now
from app.core.db.session import Database
from app.core.email.delivery import deliver
from app.core.email.message import QueuedEmail, RefusedEmailError, Renderer, compose
from app.core.errors import first_line
from app.core.observability.metrics import EMAILS, EMAILS_PENDING_SECONDS
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
        self._concurrency = concurrency
        # The lease covers a whole attempt: a transaction, the call to the mail server, and another transaction.
        database_seconds = settings.database_pool_timeout_seconds + settings.database_statement_timeout_seconds
        self._lease = timedelta(seconds=settings.smtp_timeout_seconds + 2 * database_seconds)
        self._wake = asyncio.Event()
        database.info[service.WAKE] = self._wake
        self._stops = False
        self._is_unreachable = False

    async def run(self) -> None:
        """Send until `stop` is called. An e-mail that is enqueued in this process wakes the sender at once."""
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
        """Send all due e-mails, and return the seconds to wait before polling again."""
        try:
            while not self._stops and await self.send_due():
                pass
            pause = await self._update_metrics()
        except Exception as error:
            # Log an outage once, not at each poll. Catch every error, so that sending continues.
            if not self._is_unreachable:
                logger.warning("outbox unreachable", error=type(error).__name__, reason=first_line(error))
            self._is_unreachable = True
            return self._settings.outbox_poll_seconds
        self._is_unreachable = False
        return pause

    async def send_due(self) -> int:
        """Try to send due e-mails, a few concurrently, and return their number."""
        # Read first, which is cheap: a claim would take SQLite's write lock.
        async with self._database.read() as session:
            state = await service.read_state(session)
        if state.next_due_at is None or state.next_due_at > utc_now():
            return 0
        async with self._database.write() as session:
            emails = await service.claim(session, self._lease, self._concurrency)
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
            # A bug in one kind of e-mail must not stop e-mails of other kinds.
            logger.exception("e-mail cannot be rendered", email_id=str(email.id), kind=email.kind)
            await self._retry(email, f"{type(error).__name__}: {first_line(error)}")

    async def _send(self, email: EmailRecord) -> None:
        queued = QueuedEmail(
            id=email.id,
            kind=email.kind,
            address=email.address,
            account_id=email.account_id,
            payload=email.payload,
        )
        # Commit before sending, so that a token in the e-mail is valid when it arrives.
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
        logger.warning("e-mail not sent, will be retried", email_id=str(email.id), reason=reason)
        async with self._database.write() as session:
            await service.reschedule(session, email, utc_now() + delay, reason)

    async def _give_up(self, email: EmailRecord, reason: str) -> None:
        EMAILS.labels("failed").inc()
        logger.error("e-mail failed", email_id=str(email.id), kind=email.kind, reason=reason)
        async with self._database.write() as session:
            await service.reschedule(session, email, None, reason)


def retry_delay(settings: Settings, attempts: int) -> timedelta:
    """Return an exponential backoff with jitter, so that a recovering mail server is not hit by all retries at once."""
    doublings = min(attempts - 1, MAX_DOUBLINGS)
    longest = min(settings.email_retry_seconds * 2**doublings, settings.email_retry_max_seconds)
    return timedelta(seconds=longest * random.uniform(0.5, 1))  # noqa: S311  # no secret


@asynccontextmanager
async def run_sender(settings: Settings, database: Database, renderers: Mapping[str, Renderer]) -> AsyncIterator[None]:
    """Run the sender in the background while the service runs."""
    sender = Sender(settings, database, renderers)
    task = asyncio.create_task(sender.run(), name="outbox")
    try:
        yield
    finally:
        sender.stop()
        # Another process sends the unfinished e-mails when their lease ends.
        await asyncio.wait([task], timeout=STOP_TIMEOUT_SECONDS)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
