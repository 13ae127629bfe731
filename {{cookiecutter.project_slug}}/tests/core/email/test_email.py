"""The content of messages, and their delivery to a mail server or a file."""

import io
import json
import random
import ssl
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import EmailMessage as MimeMessage
from email.policy import compat32, default
from email.utils import parsedate_to_datetime, quote
from pathlib import Path
from uuid import UUID

import pytest
from aiosmtplib import SMTPException

from app.core.addresses import to_ascii_address
from app.core.config.settings import Settings
from app.core.email import message as core_email
from app.core.email.delivery import deliver
from app.core.email.message import MAX_WORD_BYTES, EmailMessage, RefusedEmailError, compose, render_email
from app.core.project import Project
from tests.support.certificates import make_certificate
from tests.support.databases import make_settings
from tests.support.mail import ENCODED_ADDRESSES, PASSWORD, USER, run_mail_server

ID = UUID(int=7)
HELLO = EmailMessage(to="ada@example.com", subject="Hello", text="Good day\n", html="<p>Good day</p>\n")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    return make_certificate(tmp_path)


@pytest.fixture
def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr("app.core.email.delivery._tls_context", lambda: context)


def decode(content: bytes, header: str) -> str:
    raw = message_from_bytes(content, policy=compat32)[header]
    return str(make_header(decode_header(raw.replace("\r\n", ""))))


def squeeze(text: str) -> str:
    return " ".join(text.split())


def read_parts(message: MimeMessage) -> tuple[str, str]:
    text, html = (part.get_content().replace("\r\n", "\n") for part in message.iter_parts())
    return text, html


async def test_a_message_arrives_with_text_html_and_its_headers(migrated_url: str) -> None:
    with run_mail_server() as mail:
        settings = make_settings(
            migrated_url, **mail.settings, email_from="service@example.com", public_url="https://api.example.com/"
        )

        await deliver(settings, compose(settings, ID, HELLO))

    (message,) = mail.messages
    assert message.get_content_type() == "multipart/alternative"
    assert read_parts(message) == (HELLO.text, HELLO.html)
    assert message["To"] == "ada@example.com"
    assert message["From"].addresses[0].addr_spec == "service@example.com"
    assert message["Subject"] == "Hello"
    assert message["Message-ID"] == f"<{ID}@api.example.com>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert abs(parsedate_to_datetime(message["Date"]) - datetime.now(UTC)) < timedelta(minutes=1)


async def test_a_message_may_hold_any_characters(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    title = 'Café "Bär" <x@y>, 🚀'
    monkeypatch.setattr(core_email, "read_project", lambda: Project("x", "1", title, ""))
    words = "naïve 漢字 🚀 " * 200 + "\n.\n..\nFrom here\n"
    with run_mail_server() as mail:
        settings = make_settings(migrated_url, **mail.settings)

        await deliver(
            settings,
            compose(settings, ID, EmailMessage(to="a@bücher.example", subject=words[:99], text=words, html="")),
        )

    (message,) = mail.messages
    assert mail.attempts == ["a@xn--bcher-kva.example"]
    assert read_parts(message)[0] == words
    assert message["Subject"] == words[:99]
    assert message["From"].addresses[0].display_name == title


@pytest.mark.parametrize("line_break", ["\r\n", "\n", "\r", "\x0b", "\x85", "\u2028"])
def test_no_value_can_add_a_header(settings: Settings, monkeypatch: pytest.MonkeyPatch, line_break: str) -> None:
    line = f"a{line_break}Bcc: eve@example.com"
    with pytest.raises(RefusedEmailError, match="one line"):
        compose(settings, ID, EmailMessage(to="ada@example.com", subject=line, text="", html=""))
    with pytest.raises(RefusedEmailError, match=r"address|@"):
        compose(settings, ID, EmailMessage(to=f"ada@example.com{line}", subject="", text="", html=""))
    monkeypatch.setattr(core_email, "read_project", lambda: Project("x", "1", line, ""))
    with pytest.raises(RefusedEmailError, match="one line"):
        compose(settings, ID, HELLO)


PARTS = [
    "a",
    "B",
    " ",
    "  ",
    "\t",
    '"',
    ",",
    "<",
    ">",
    "@",
    "(",
    ")",
    "\\",
    ";",
    ":",
    "-",
    "_",
    "=",
    ".",
    "é",
    "漢",
    "🚀",
]
PARTS += ["=?", "?=", "=?utf-8?q?x?=", "=?utf-8?q?a=0Ab?=", "word", "long" * 20, "long" * 300]
RANDOM = random.Random(1)  # noqa: S311  # no secret
LINES = ["=?utf-8?q?x?=", "=?utf-8?q?a=0ABcc:_eve@example.com?=", "Ada <eve@example.com>", '"', "x" * 2000, "é" * 2000]
LINES += ["".join(RANDOM.choices(PARTS, k=RANDOM.randint(1, 30))) for _ in range(500)]


def test_header_is_decoded_to_its_original_value(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in LINES:
        monkeypatch.setattr(core_email, "read_project", lambda line=line: Project("x", "1", line, ""))

        content = compose(settings, ID, EmailMessage(to="ada@example.com", subject=line, text="", html="")).content

        message = message_from_bytes(content, policy=default)
        (sender,) = message["From"].addresses
        assert decode(content, "Subject") == line
        assert decode(content, "From") in (f"{line} <{settings.sender}>", f'"{quote(line)}" <{settings.sender}>')
        # Python's parser replaces several spaces by one, and up to Python 3.12.8 adds a space between encoded words.
        assert squeeze(message["Subject"]) == squeeze(line)
        assert squeeze(sender.display_name) == squeeze(line) or len(line.encode()) > MAX_WORD_BYTES
        assert sender.addr_spec == settings.sender
        assert message["To"] == "ada@example.com"
        assert message["Bcc"] is None
        assert message["Message-ID"] == f"<{ID}@{settings.mail_host}>"


def test_lines_of_headers_are_short(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_email, "read_project", lambda: Project("x", "1", "x" * 500, ""))

    content = compose(settings, ID, EmailMessage(to="ada@example.com", subject="漢 " * 300, text="", html="")).content

    assert max(len(line) for line in content.partition(b"\r\n\r\n")[0].split(b"\r\n")) <= 78


@pytest.mark.parametrize(
    "address",
    [
        "a!#$%&'*+-/=^_`{|}~?@example.com",
        "a?=@example.com",
        f"{'x' * 64}@{'a' * 60}.{'b' * 60}.example.com",
        "ada=40example.org@example.com",
        "ada%example.org@example.com",
    ],
)
async def test_recipient_address_is_sent_unchanged(migrated_url: str, address: str) -> None:
    with run_mail_server() as mail:
        settings = make_settings(migrated_url, **mail.settings)
        await deliver(settings, compose(settings, ID, EmailMessage(to=address, subject="", text="", html="")))

    (message,) = mail.messages
    assert mail.attempts == [address]
    assert message["To"] == address
    assert mail.senders == [settings.sender]


@pytest.mark.parametrize("address", ENCODED_ADDRESSES)
def test_address_that_mail_software_would_decode_is_refused(settings: Settings, address: str) -> None:
    with pytest.raises(RefusedEmailError, match="decode"):
        compose(settings, ID, EmailMessage(to=address, subject="", text="", html=""))


@pytest.mark.parametrize(
    ("values", "sender", "host"),
    [
        ({"email_from": "us@bücher.example.com"}, "us@xn--bcher-kva.example.com", "localhost"),
        ({"email_from": "us@xn--bcher-kva.example.com"}, "us@xn--bcher-kva.example.com", "localhost"),
        ({"email_from": "us@faß.example.com"}, "us@xn--fa-hia.example.com", "localhost"),
        ({"public_url": "https://Bücher.example/x"}, "no-reply@xn--bcher-kva.example", "xn--bcher-kva.example"),
        ({"public_url": "https://xn--bcher-kva.example"}, "no-reply@xn--bcher-kva.example", "xn--bcher-kva.example"),
        ({"public_url": "https://東京.example."}, "no-reply@xn--1lqs71d.example", "xn--1lqs71d.example"),
        ({"public_url": "http://127.0.0.1:8000"}, "no-reply@[127.0.0.1]", "[127.0.0.1]"),
        ({"public_url": "http://[::1]:8000"}, "no-reply@[IPv6:::1]", "[IPv6:::1]"),
        ({"allowed_hosts": ["bücher.example"]}, "no-reply@xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)
async def test_international_host_names_are_sent_in_ascii(
    migrated_url: str, values: dict[str, object], sender: str, host: str
) -> None:
    with run_mail_server() as mail:
        settings = make_settings(migrated_url, **mail.settings, **values)
        await deliver(settings, compose(settings, ID, HELLO))

    (message,) = mail.messages
    assert (mail.senders, mail.clients) == ([sender], [host])
    assert [address.addr_spec for address in message["From"].addresses] == [sender]
    assert message["Message-ID"] == f"<{ID}@{host}>"


@pytest.mark.parametrize("address", ["jürgen@bücher.example", "用户@example.com"])
async def test_unicode_address_requires_server_with_smtputf8(migrated_url: str, address: str) -> None:
    email = EmailMessage(to=address, subject="Grüße", text="", html="")
    written = to_ascii_address(address)
    with run_mail_server() as mail, run_mail_server(takes_utf8=True) as newer:
        settings = make_settings(migrated_url, **mail.settings)
        with pytest.raises(RefusedEmailError, match="SMTPUTF8"):
            await deliver(settings, compose(settings, ID, email))
        newer_settings = make_settings(migrated_url, **newer.settings)
        await deliver(newer_settings, compose(newer_settings, ID, email))

    (message,) = newer.messages
    assert (mail.attempts, newer.attempts) == ([], [written])
    assert (message["To"], message["Subject"]) == (written, "Grüße")


def test_values_are_escaped_in_html_and_not_in_plain_text(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_email, "read_project", lambda: Project("x", "1", "<b>&", ""))

    email = render_email("core/email/templates/layout", "ada@example.com", "<script>", settings)

    assert "<script>" not in email.html
    assert "&lt;script&gt;" in email.html
    assert "<b>&" in email.text


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("security", "login"), [("tls", {}), ("starttls", {"smtp_user": USER, "smtp_password": PASSWORD})]
)
async def test_a_message_and_the_password_go_over_tls(
    migrated_url: str, server_tls: ssl.SSLContext, security: str, login: dict[str, str]
) -> None:
    with run_mail_server(security=security, tls=server_tls) as mail:
        settings = make_settings(migrated_url, **{**mail.settings, "smtp_security": security, **login})

        await deliver(settings, compose(settings, ID, HELLO))

    assert len(mail.messages) == 1


@pytest.mark.parametrize("security", ["tls", "starttls"])
async def test_server_with_untrusted_certificate_gets_no_message(
    migrated_url: str, server_tls: ssl.SSLContext, security: str
) -> None:
    with run_mail_server(security=security, tls=server_tls) as mail:
        settings = make_settings(migrated_url, **{**mail.settings, "smtp_security": security})

        with pytest.raises(OSError, match=r"(?i)certificate"):
            await deliver(settings, compose(settings, ID, HELLO))

    assert mail.attempts == []


async def test_server_without_starttls_gets_no_message(migrated_url: str) -> None:
    with run_mail_server() as mail:
        settings = make_settings(migrated_url, **{**mail.settings, "smtp_security": "starttls"})

        with pytest.raises(SMTPException):
            await deliver(settings, compose(settings, ID, HELLO))

    assert mail.attempts == []


async def test_without_a_server_a_message_becomes_a_file(migrated_url: str, tmp_path: Path, logs: io.StringIO) -> None:
    settings = make_settings(migrated_url, email_folder=tmp_path / "new" / "mail")

    await deliver(settings, compose(settings, ID, HELLO))

    (file,) = (tmp_path / "new" / "mail").iterdir()
    assert file.suffix == ".eml"
    assert json.loads(logs.getvalue())["path"] == str(file)
    assert file.stat().st_mode & 0o077 == 0
    assert read_parts(message_from_bytes(file.read_bytes(), policy=default)) == (HELLO.text, HELLO.html)
