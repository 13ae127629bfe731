"""A real mail server in a thread; a test can make it slow, or make it reject messages."""

import asyncio
import inspect
import logging
import re
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from app.application import email_renderers
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.outbox.sender import Sender
from tests.support.sockets import hold_port

PATIENCE_SECONDS = 60
USER = "service"
PASSWORD = "hunter2"
# Mail software decodes these to addresses or to two lines (RFC 2047).
ENCODED_ADDRESSES = [
    "=?utf-8?q?victim?=@example.com",
    "=?UTF-8?B?dmljdGlt?=@example.com",
    "=?utf-8?q?a=0Ab?=@example.com",
    "x=?utf-8?q?victim?=y@example.com",
    "=?iso-8859-1*en?q?victim?=@example.com",
    "=?utf-8?q?victim@example.com",
]


@dataclass
class MailServer:
    loop: asyncio.AbstractEventLoop
    port: int = 0
    messages: list[EmailMessage] = field(default_factory=list)
    # The recipients of all attempts, successful or not.
    attempts: list[str] = field(default_factory=list)
    # For each message: the sender in the envelope, and the name in the client's EHLO.
    senders: list[str | None] = field(default_factory=list)
    clients: list[str | None] = field(default_factory=list)
    recipient_answer: str = "250 OK"
    data_answer: str = "250 OK"
    _answers: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._answers.set()

    def fall_silent(self) -> None:
        """Receive messages from now on, but send no response."""
        self._answers.clear()

    def speak(self) -> None:
        self.loop.call_soon_threadsafe(self._answers.set)

    @property
    def settings(self) -> dict[str, object]:
        return {"smtp_host": "127.0.0.1", "smtp_port": self.port, "smtp_security": "none"}

    @property
    def environment(self) -> dict[str, str]:
        return {name.upper(): str(value) for name, value in self.settings.items()}

    async def handle_RCPT(  # noqa: N802  # the library's name
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        self.attempts.append(address)
        if self.recipient_answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.recipient_answer

    async def handle_DATA(self, _server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802  # aiosmtpd calls it by this name
        assert isinstance(envelope.content, bytes)
        await self._answers.wait()
        self.senders.append(envelope.mail_from)
        self.clients.append(session.host_name)
        if self.data_answer.startswith("250"):
            self.messages.append(message_from_bytes(envelope.content, policy=default))
        return self.data_answer

    def to(self, address: str) -> list[EmailMessage]:
        return [message for message in self.messages if message["To"] == address]


@contextmanager
def run_mail_server(
    held: socket.socket | None = None,
    *,
    security: str = "none",
    tls: ssl.SSLContext | None = None,
    takes_utf8: bool = False,
) -> Iterator[MailServer]:
    """Run a mail server on 127.0.0.1, on the port of `held` or on a free port; with STARTTLS it requires a password."""
    logging.getLogger("mail.log").setLevel(logging.WARNING)
    loop = asyncio.new_event_loop()
    mail = MailServer(loop)
    thread = threading.Thread(target=loop.run_forever, name="mail-server")
    thread.start()

    def make_protocol() -> SMTP:
        return SMTP(
            mail,
            hostname="localhost",
            tls_context=tls if security == "starttls" else None,
            require_starttls=security == "starttls",
            auth_required=security == "starttls",
            authenticator=check_password,
            enable_SMTPUTF8=takes_utf8,
            loop=loop,
        )

    async def start() -> asyncio.Server:
        tls_from_the_start = tls if security == "tls" else None
        return await loop.create_server(make_protocol, sock=held or hold_port(), ssl=tls_from_the_start)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    mail.port = server.sockets[0].getsockname()[1]
    try:
        yield mail
    finally:
        asyncio.run_coroutine_threadsafe(stop(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def stop(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def check_password(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, login: object) -> AuthResult:
    is_right = isinstance(login, LoginPassword) and login == LoginPassword(USER.encode(), PASSWORD.encode())
    return AuthResult(success=is_right, handled=False)


class Mailbox:
    """The messages that the service has written to files instead of sending them."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._folder = settings.email_folder
        # Sends one message at a time, because most tests have only one database connection, whose transaction is rolled
        # back at the end.
        self._sender = Sender(settings, database, email_renderers(), concurrency=1)

    async def read(self, address: str) -> list[EmailMessage]:
        """Send the queued messages; return all messages to the address, in the order in which they were sent."""
        while await self._sender.send_due():
            pass
        files = sorted(self._folder.glob("*.eml"), key=lambda file: file.stat().st_mtime_ns)
        messages = [message_from_bytes(file.read_bytes(), policy=default) for file in files]
        return [message for message in messages if message["To"] == address]


def find_token(message: EmailMessage) -> str:
    """Return the code in the text of a message, or at the end of its link."""
    body = message.get_body(("plain",))
    assert body is not None
    (token,) = re.findall(r"(?m)^\S*?([A-Za-z0-9_-]{43})\s*$", body.get_content())
    return str(token)


async def wait_for(condition: Callable[[], Awaitable[object] | object]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await _ask(condition):  # noqa: ASYNC110  # what is waited for happens in other threads and processes
            await asyncio.sleep(0.01)


async def _ask(condition: Callable[[], Awaitable[object] | object]) -> object:
    answer = condition()
    return await answer if inspect.isawaitable(answer) else answer
