"""E-mails of real processes: none is lost in a crash or sent twice, and no request waits for the mail server."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import pytest

from tests.support.accounts import PASSWORD
from tests.support.databases import execute, migrate
from tests.support.mail import MailServer, run_mail_server
from tests.support.servers import Server, run_server, wait_for
from tests.support.sockets import hold_port

pytestmark = pytest.mark.processes

FORGOT = "/api/v1/auth/password/forgot"
# SMTP_TIMEOUT_SECONDS makes the lease of a message longer than any pause of the machine.
PATIENT = {"SMTP_TIMEOUT_SECONDS": "60", "OUTBOX_POLL_SECONDS": "0.1", "THROTTLING": "false"}


@pytest.fixture
def url(empty_url: str) -> str:
    migrate(empty_url)
    return empty_url


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with run_mail_server() as mail:
        yield mail


@contextmanager
def run(url: str, environment: dict[str, str], workers: int = 1) -> Iterator[Server]:
    values: dict[str, Any] = environment
    with run_server(url, workers=workers, **values) as server:
        yield server


def sign_up(server: Server) -> str:
    email = f"{uuid4().hex}@example.com"
    with server.open_client() as client:
        assert client.post("/api/v1/users", json={"email": email, "password": PASSWORD}).status_code == 201
    return email


def forget(server: Server, *emails: str) -> list[float]:
    """Request a password reset for each address; return the seconds that each response took."""
    seconds = []
    with server.open_client() as client:
        for email in emails:
            started = time.monotonic()
            assert client.post(FORGOT, json={"email": email}).status_code == 202
            seconds.append(time.monotonic() - started)
    return seconds


def test_message_of_killed_process_is_sent_by_the_next_process(url: str, mail: MailServer) -> None:
    mail.fall_silent()
    with run(url, mail.environment | PATIENT) as server:
        email = sign_up(server)
        forget(server, email)
        wait_for(lambda: mail.attempts, "the first attempt")
        server.kill()
    left = execute(url, "SELECT attempts, due_at > CURRENT_TIMESTAMP FROM outgoing_emails")
    # Ends the lease of the message; tests/outbox/test_outbox.py tests when a lease expires.
    execute(url, "UPDATE outgoing_emails SET due_at = created_at")
    mail.speak()
    with run(url, mail.environment | PATIENT):
        wait_for(lambda: mail.to(email), "the message")
        wait_for(lambda: not execute(url, "SELECT 1 FROM outgoing_emails"), "an empty queue")

    assert left == [(1, True)]
    assert len(mail.attempts) >= 2


def test_several_workers_send_each_message_once(url: str, mail: MailServer) -> None:
    with run(url, mail.environment | PATIENT, workers=3) as server:
        emails = [sign_up(server) for _ in range(12)]
        forget(server, *emails)
        wait_for(lambda: not execute(url, "SELECT 1 FROM outgoing_emails"), "an empty queue")

    assert sorted(mail.attempts) == sorted(emails)


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "gone"])
def test_no_request_waits_for_the_mail_server(url: str, is_silent: bool) -> None:
    with run_mail_server() as mail, hold_port() as held:
        mail.fall_silent()
        port = mail.port if is_silent else held.getsockname()[1]
        environment = {**mail.environment, **PATIENT, "SMTP_PORT": str(port)}
        seconds = measure(url, environment, mail if is_silent else None)

    # Less than SMTP_TIMEOUT_SECONDS, so no response has waited for the mail server.
    assert max(seconds) < 30


def measure(url: str, environment: dict[str, str], silent: MailServer | None = None) -> list[float]:
    with run(url, environment) as server:
        email = sign_up(server)
        seconds = forget(server, *[email] * 30)
        if silent is not None:
            wait_for(lambda: silent.attempts, "an attempt")
        assert server.get("/health/ready").status_code == 200
        started = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.wait() == 0
        assert time.monotonic() - started < 25
    assert execute(url, "SELECT count(*) FROM outgoing_emails") == [(30,)]
    return seconds


def test_without_mail_server_messages_are_written_to_files_named_in_the_log(url: str) -> None:
    with run(url, PATIENT) as server:
        email = sign_up(server)
        forget(server, email)
        server.wait_for_event("message written to a file")
        (event,) = [event for event in server.events if "message written" in str(event["event"])]

    with open(str(event["path"])) as file:
        assert f"To: {email}" in file.read()
