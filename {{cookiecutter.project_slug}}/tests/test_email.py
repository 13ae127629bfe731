"""What a message is made of, and how it reaches a mail server, or a file."""

import io
import json
import ssl
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from email.utils import parsedate_to_datetime
from pathlib import Path
from uuid import UUID

import pytest
from aiosmtplib import SMTPException

from app.core import email as core_email
from app.core.config import Settings
from app.core.email import Email, compose, deliver, render_email
from app.core.project import Project
from tests.certificates import make_certificate
from tests.databases import make_settings
from tests.mail import PASSWORD, USER, run_mail_server

ID = UUID(int=7)
HELLO = Email(to="ada@example.com", subject="Hello", text="Good day\n", html="<p>Good day</p>\n")


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
    monkeypatch.setattr(core_email, "_tls_context", lambda: context)


def read_parts(message: EmailMessage) -> tuple[str, str]:
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
            settings, compose(settings, ID, Email(to="a@bücher.example", subject=words[:99], text=words, html=""))
        )

    (message,) = mail.messages
    assert mail.attempts == ["a@xn--bcher-kva.example"]
    assert read_parts(message)[0] == words
    assert message["Subject"] == words[:99]
    assert message["From"].addresses[0].display_name == title


@pytest.mark.parametrize("line", ["a\r\nBcc: eve@example.com", "a\nBcc: eve@example.com", "a\rBcc: eve@example.com"])
def test_no_value_can_add_a_header(settings: Settings, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    with pytest.raises(ValueError, match="Header values"):
        compose(settings, ID, Email(to="ada@example.com", subject=line, text="", html=""))
    with pytest.raises(ValueError, match=r"address|@"):
        compose(settings, ID, Email(to=f"ada@example.com{line}", subject="", text="", html=""))
    monkeypatch.setattr(core_email, "read_project", lambda: Project("x", "1", line, ""))
    with pytest.raises(ValueError, match="invalid arguments"):
        compose(settings, ID, HELLO)


def test_html_is_escaped_and_text_is_not(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core_email, "read_project", lambda: Project("x", "1", "<b>&", ""))

    email = render_email("core/mails/layout", "ada@example.com", "<script>", settings)

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
async def test_a_server_that_nobody_vouches_for_gets_nothing(
    migrated_url: str, server_tls: ssl.SSLContext, security: str
) -> None:
    with run_mail_server(security=security, tls=server_tls) as mail:
        settings = make_settings(migrated_url, **{**mail.settings, "smtp_security": security})

        with pytest.raises(OSError, match=r"(?i)certificate"):
            await deliver(settings, compose(settings, ID, HELLO))

    assert mail.attempts == []


async def test_a_server_without_starttls_gets_nothing(migrated_url: str) -> None:
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
