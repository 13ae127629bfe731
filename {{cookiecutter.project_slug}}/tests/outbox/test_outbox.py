"""The queue of messages, with real transactions, a real mail server and several senders.

Senders poll only once a minute, so that the events that a test expects must happen without a poll.
"""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from prometheus_client import REGISTRY
from pydantic import JsonValue

from app.core.config.settings import Settings
from app.core.db.models import utc_now
from app.core.db.session import Database, Session, open_database
from app.core.email.message import EmailMessage, QueuedEmail
from app.outbox import service
from app.outbox.sender import retry_delay, run_sender
from tests.support.databases import execute_async, make_settings, migrate, unreachable_url
from tests.support.mail import ENCODED_ADDRESSES, MailServer, run_mail_server, wait_for
from tests.support.sockets import hold_port
from tests.test_cli import manage

ADA = "ada@example.com"


async def greet(_session: Session, _settings: Settings, email: QueuedEmail) -> EmailMessage | None:
    if email.address.startswith("nobody"):
        return None
    if email.address.startswith("bug"):
        raise KeyError("a mistake")
    return EmailMessage(to=email.address, subject="Hello", text=f"{email.id}\n", html="")


RENDERERS = {"greeting": greet}


@pytest.fixture
def live_url(empty_url: str) -> str:
    migrate(empty_url)
    return empty_url


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with run_mail_server() as mail:
        yield mail


@pytest.fixture
def settings(live_url: str, mail: MailServer) -> Settings:
    """Settings with immediate retries, and a poll interval that is longer than a test."""
    quick = {"email_retry_seconds": 0.01, "smtp_timeout_seconds": 60, "outbox_poll_seconds": 60}
    return make_settings(live_url, database_pool_size=4, **quick, **mail.settings)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    async with open_database(settings) as database:
        yield database


async def enqueue(database: Database, *addresses: str) -> None:
    async with database.write() as session:
        for address in addresses:
            await service.enqueue(session, "greeting", address)


async def wait_until_empty(url: str) -> None:
    async def is_empty() -> bool:
        return not await execute_async(url, "SELECT 1 FROM outgoing_emails")

    await wait_for(is_empty)


async def count_due(url: str) -> int:
    return len(await execute_async(url, "SELECT 1 FROM outgoing_emails WHERE due_at IS NOT NULL"))


async def wait_until_nothing_is_due(url: str) -> None:
    async def is_nothing_due() -> bool:
        return await count_due(url) == 0

    await wait_for(is_nothing_due)


def count_emails(outcome: str) -> float:
    return REGISTRY.get_sample_value("emails_total", {"outcome": outcome}) or 0


async def test_message_is_sent_at_once_and_then_deleted(
    live_url: str, settings: Settings, database: Database, mail: MailServer
) -> None:
    sent = count_emails("sent")
    async with run_sender(settings, database, RENDERERS):
        for address in (ADA, "eve@example.com"):
            await enqueue(database, address)
            await wait_until_empty(live_url)
        await wait_for(lambda: count_emails("sent") == sent + 2)

    assert [message["To"] for message in mail.messages] == [ADA, "eve@example.com"]


async def test_the_renderer_gets_the_payload_that_was_enqueued(settings: Settings, database: Database) -> None:
    payloads: list[Mapping[str, JsonValue]] = []

    async def note_payload(_session: Session, _settings: Settings, email: QueuedEmail) -> None:
        payloads.append(email.payload)

    async with run_sender(settings, database, {"note": note_payload}):
        async with database.write() as session:
            await service.enqueue(session, "note", ADA, payload={"project": "Zürich", "roles": ["admin", None, 1]})
        await wait_for(lambda: len(payloads) == 1)
        async with database.write() as session:
            await service.enqueue(session, "note", ADA)
        await wait_for(lambda: len(payloads) == 2)

    assert payloads == [{"project": "Zürich", "roles": ["admin", None, 1]}, {}]


async def test_message_of_rolled_back_transaction_is_not_sent(
    settings: Settings, database: Database, mail: MailServer
) -> None:
    async def fail() -> None:
        async with database.write() as session:
            await service.enqueue(session, "greeting", "rolled-back@example.com")
            raise KeyError

    async with run_sender(settings, database, RENDERERS):
        with pytest.raises(KeyError):
            await fail()
        await enqueue(database, ADA)
        await wait_for(lambda: mail.messages)

    assert mail.attempts == [ADA]


async def test_messages_of_other_processes_are_found_by_polling(
    live_url: str, settings: Settings, mail: MailServer
) -> None:
    watchful = settings.model_copy(update={"outbox_poll_seconds": 0.05})
    async with (
        open_database(settings) as other,
        open_database(watchful) as database,
        run_sender(watchful, database, RENDERERS),
    ):
        await enqueue(other, ADA)
        await wait_until_empty(live_url)

    assert mail.attempts == [ADA]


async def test_message_is_deleted_unsent_if_renderer_returns_none(
    live_url: str, settings: Settings, database: Database, mail: MailServer
) -> None:
    async with run_sender(settings, database, RENDERERS):
        await enqueue(database, "nobody@example.com")
        await wait_until_empty(live_url)

    assert mail.attempts == []


async def test_a_server_that_is_down_is_tried_again(live_url: str, settings: Settings, database: Database) -> None:
    retried = count_emails("retried")
    with hold_port() as held:
        down = settings.model_copy(update={"smtp_port": held.getsockname()[1]})
        async with run_sender(down, database, RENDERERS):
            await enqueue(database, ADA)
            await wait_for(lambda: count_emails("retried") >= retried + 3)
            with run_mail_server(held) as back:
                await wait_until_empty(live_url)

    assert len(back.to(ADA)) == 1


@pytest.mark.parametrize("answer", ["recipient_answer", "data_answer"])
async def test_temporary_refusal_is_retried(
    live_url: str, settings: Settings, database: Database, mail: MailServer, answer: str
) -> None:
    setattr(mail, answer, "451 4.3.0 Later, please")
    async with run_sender(settings, database, RENDERERS):
        await enqueue(database, ADA)
        await wait_for(lambda: len(mail.attempts) >= 3)
        setattr(mail, answer, "250 OK")
        await wait_until_empty(live_url)

    assert len(mail.to(ADA)) == 1


@pytest.mark.parametrize("answer", ["recipient_answer", "data_answer"])
async def test_permanent_refusal_is_not_retried(
    live_url: str, settings: Settings, database: Database, mail: MailServer, logs: io.StringIO, answer: str
) -> None:
    setattr(mail, answer, "550 5.1.1 No such mailbox")
    failed = count_emails("failed")
    async with run_sender(settings, database, RENDERERS):
        await enqueue(database, ADA)
        await wait_for(lambda: count_emails("failed") > failed)
        setattr(mail, answer, "250 OK")
        await enqueue(database, "eve@example.com")
        await wait_for(lambda: mail.messages)
        await wait_until_nothing_is_due(live_url)

    events = [json.loads(line) for line in logs.getvalue().splitlines()]
    (failure,) = [event for event in events if event["level"] == "error"]
    assert mail.attempts == [ADA, "eve@example.com"]
    assert "No such mailbox" in failure["reason"]
    assert ADA not in logs.getvalue()


@pytest.mark.parametrize("address", [*ENCODED_ADDRESSES, "jürgen@example.com", "no address"])
async def test_message_to_invalid_address_is_tried_only_once(
    live_url: str, settings: Settings, database: Database, mail: MailServer, address: str
) -> None:
    async with run_sender(settings, database, RENDERERS):
        await enqueue(database, address)
        await wait_until_nothing_is_due(live_url)

    assert await execute_async(live_url, "SELECT attempts FROM outgoing_emails") == [(1,)]
    assert mail.attempts == []


async def test_retries_end_at_the_limit_and_operator_can_retry(
    live_url: str, settings: Settings, database: Database, mail: MailServer
) -> None:
    impatient = settings.model_copy(update={"email_retry_limit": 2})
    mail.data_answer = "451 4.3.0 Later, please"
    failed = count_emails("failed")
    async with run_sender(impatient, database, RENDERERS):
        await enqueue(database, ADA)
        await wait_for(lambda: count_emails("failed") > failed)
        # The failure is counted before it is stored.
        await wait_until_nothing_is_due(live_url)
        attempts = len(mail.attempts)
    mail.data_answer = "250 OK"
    listed = await asyncio.to_thread(manage, live_url, "outbox", "list")
    retried = await asyncio.to_thread(manage, live_url, "outbox", "retry")
    async with run_sender(impatient, database, RENDERERS):
        await wait_until_empty(live_url)

    assert attempts == 3
    assert "Later, please" in listed.stdout
    assert ADA not in listed.stdout
    assert "again: 1" in retried.stdout
    assert len(mail.to(ADA)) == 1


async def test_old_failed_messages_are_purged(live_url: str, settings: Settings, database: Database) -> None:
    await enqueue(database, ADA, "eve@example.com", "bob@example.com")
    await execute_async(live_url, "UPDATE outgoing_emails SET due_at = NULL WHERE address <> 'bob@example.com'")
    old = "UPDATE outgoing_emails SET created_at = '2020-01-01 00:00:00+00:00' WHERE address <> 'ada@example.com'"
    await execute_async(live_url, old)

    async with database.write() as session:
        purged = await service.purge_failed(session, settings)

    assert purged == 1
    assert sorted(await execute_async(live_url, "SELECT address FROM outgoing_emails")) == [
        (ADA,),
        ("bob@example.com",),
    ]


def test_command_fails_if_database_is_unreachable() -> None:
    result = manage(unreachable_url(), "outbox", "list")

    assert result.returncode == 1


async def test_rendering_error_of_one_message_does_not_delay_others(
    settings: Settings, database: Database, mail: MailServer, logs: io.StringIO
) -> None:
    async with run_sender(settings, database, RENDERERS):
        await enqueue(database, "bug@example.com", ADA)
        await wait_for(lambda: mail.messages)

    assert mail.attempts == [ADA]
    assert "e-mail cannot be rendered" in logs.getvalue()


async def test_unresponsive_mail_server_times_out_and_is_tried_again(
    live_url: str, settings: Settings, database: Database, mail: MailServer
) -> None:
    impatient = settings.model_copy(update={"smtp_timeout_seconds": 0.2})
    mail.fall_silent()
    async with run_sender(impatient, database, RENDERERS):
        await enqueue(database, ADA)
        await wait_for(lambda: len(mail.attempts) >= 2)
        mail.speak()
        await wait_until_empty(live_url)

    assert mail.to(ADA)


async def test_shutdown_does_not_wait_for_unresponsive_mail_server(
    live_url: str, settings: Settings, database: Database, mail: MailServer
) -> None:
    mail.fall_silent()
    async with run_sender(settings.model_copy(update={"smtp_timeout_seconds": 60}), database, RENDERERS):
        await enqueue(database, ADA)
        await wait_for(lambda: mail.attempts)
        started = time.monotonic()
    seconds = time.monotonic() - started

    assert seconds < 10
    assert await count_due(live_url) == 1


async def test_several_senders_send_each_message_once(
    live_url: str, settings: Settings, database: Database, mail: MailServer
) -> None:
    addresses = [f"user{number}@example.com" for number in range(30)]
    await enqueue(database, *addresses)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            other = await stack.enter_async_context(open_database(settings))
            await stack.enter_async_context(run_sender(settings, other, RENDERERS))
        await wait_until_empty(live_url)

    assert sorted(mail.attempts) == sorted(addresses)
    assert sorted(message["To"] for message in mail.messages) == sorted(addresses)


async def test_claimed_message_cannot_be_claimed_again_before_lease_expires(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = timedelta(seconds=2)
    await enqueue(database, ADA)
    now = utc_now()

    async def claim() -> int:
        async with database.write() as session:
            return len(await service.claim(session, lease, at_most=5))

    claims = []
    for seconds in (0, 1.9, 2):
        monkeypatch.setattr(service, "utc_now", lambda seconds=seconds: now + timedelta(seconds=seconds))
        claims.append(await claim())

    assert claims == [1, 0, 1]


async def test_metrics_show_how_long_messages_wait(
    live_url: str, settings: Settings, database: Database, mail: MailServer
) -> None:
    watchful = settings.model_copy(update={"outbox_poll_seconds": 0.05, "email_retry_seconds": 0.5})

    def pending() -> float:
        return REGISTRY.get_sample_value("emails_pending_seconds") or 0

    mail.data_answer = "451 4.3.0 Later, please"
    async with run_sender(watchful, database, RENDERERS):
        await enqueue(database, ADA)
        await wait_for(lambda: pending() > 0.2)
        mail.data_answer = "250 OK"
        await wait_until_empty(live_url)
        await wait_for(lambda: pending() == 0)

    assert len(mail.to(ADA)) == 1


async def test_sender_reports_unreachable_database_once_and_recovers(
    live_url: str, settings: Settings, database: Database, mail: MailServer, logs: io.StringIO
) -> None:
    watchful = settings.model_copy(update={"outbox_poll_seconds": 0.02})
    await execute_async(live_url, "ALTER TABLE outgoing_emails RENAME TO hidden")
    async with run_sender(watchful, database, RENDERERS):
        await wait_for(lambda: "outbox unreachable" in logs.getvalue())
        await asyncio.sleep(0.2)
        await execute_async(live_url, "ALTER TABLE hidden RENAME TO outgoing_emails")
        await enqueue(database, ADA)
        await wait_for(lambda: mail.messages)

    assert logs.getvalue().count("outbox unreachable") == 1


def test_retry_delays_grow_up_to_a_maximum_and_are_randomized(settings: Settings) -> None:
    patient = settings.model_copy(update={"email_retry_seconds": 10, "email_retry_max_seconds": 3600})

    for attempts, longest in ((1, 10), (2, 20), (5, 160), (10, 3600), (10_000, 3600)):
        delays = [retry_delay(patient, attempts).total_seconds() for _ in range(50)]

        assert longest / 2 <= min(delays) < max(delays) <= longest
