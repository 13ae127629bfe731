"""E-mail messages: rendered from templates, and composed for the mail server."""

import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.message import EmailMessage as MimeMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID

from pydantic import JsonValue

from app.core.addresses import refuse_encoded_words, to_ascii_address
from app.core.config.settings import Settings
from app.core.db.models import utc_now
from app.core.db.session import Session
from app.core.project import ROOT, read_project

if TYPE_CHECKING:
    from jinja2 import Environment


# Not every mail server accepts 8-bit text.
POLICY = SMTP_POLICY.clone(cte_type="7bit")
# For header values: RFC 5322 recommends lines of at most 78 characters, including the name of the header.
MAX_PLAIN_LENGTH = 60
MAX_WORD_BYTES = 42


@dataclass(frozen=True, kw_only=True)
class EmailMessage:
    to: str
    subject: str
    text: str
    html: str


@dataclass(frozen=True, kw_only=True)
class QueuedEmail:
    """A message as stored in the outbox: recipient, kind and data, without secrets."""

    id: UUID
    kind: str
    address: str
    account_id: UUID | None
    # The payload that was passed to `enqueue` (app/outbox/service.py).
    payload: Mapping[str, JsonValue] = field(default_factory=dict)


# Builds the message of an entry in the outbox; returns None if nothing is to be sent, such as to a deleted account.
Renderer: TypeAlias = Callable[[Session, Settings, QueuedEmail], Awaitable[EmailMessage | None]]


@dataclass(frozen=True, kw_only=True)
class ComposedEmail:
    """A complete message and its SMTP envelope."""

    id: UUID
    sender: str
    recipient: str
    content: bytes


class RefusedEmailError(Exception):
    """The message cannot be sent: it cannot be encoded, or the mail server rejects it permanently."""


def render_email(template: str, to: str, subject: str, settings: Settings, **values: Any) -> EmailMessage:  # noqa: ANN401  # passed on to Jinja
    """Render `app/<feature>/mails/<name>.txt` and `.html`; `template` is `<feature>/mails/<name>`."""
    values |= {"subject": subject, "service": read_project().title, "service_url": settings.service_url}
    text, html = (_templates().get_template(f"{template}.{kind}").render(values) for kind in ("txt", "html"))
    return EmailMessage(to=to, subject=subject, text=text, html=html)


@cache
def _templates() -> "Environment":
    # Imported lazily: a process may serve for long before it sends its first message.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    return Environment(
        loader=FileSystemLoader(ROOT / "app"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def compose(settings: Settings, message_id: UUID, email: EmailMessage) -> ComposedEmail:
    """Compose a message; raises RefusedEmailError for invalid values, such as a subject of two lines."""
    try:
        recipient = refuse_encoded_words(to_ascii_address(email.to))
        headers = {
            "From": f"{_encode_name(read_project().title)}\r\n <{settings.sender}>",
            "To": recipient,
            "Subject": _encode_text(email.subject),
            "Date": format_datetime(utc_now()),
            # The same for each attempt, so that recipients can detect duplicates.
            "Message-ID": f"<{message_id}@{settings.mail_host}>",
            # RFC 3834: suppresses automatic replies.
            "Auto-Submitted": "auto-generated",
        }
        # Write the headers without MimeMessage, which would decode `=?utf-8?q?a=0ABcc:_b?=` in a value to a Bcc header.
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
        body = MimeMessage(policy=POLICY)
        body.set_content(email.text)
        body.add_alternative(email.html, subtype="html")
        content = head + body.as_bytes()
    except ValueError as error:
        raise RefusedEmailError(str(error)) from error
    return ComposedEmail(id=message_id, sender=settings.sender, recipient=recipient, content=content)


def _encode_name(text: str) -> str:
    if not _is_plain(text):
        return _encode_words(text)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _encode_text(text: str) -> str:
    return text if _is_plain(text) else _encode_words(text)


def _is_plain(text: str) -> bool:
    is_printed_as_it_is = text.isascii() and text.isprintable() and text == text.strip()
    return is_printed_as_it_is and "=?" not in text and len(text) <= MAX_PLAIN_LENGTH


def _encode_words(text: str) -> str:
    """Encode a header value as encoded words (RFC 2047); raises ValueError unless it is one line."""
    if text.splitlines() != [text]:
        raise ValueError("a header must be one line")
    words = [b""]
    for letter in text:
        encoded = letter.encode()
        if len(words[-1] + encoded) > MAX_WORD_BYTES:
            words.append(b"")
        words[-1] += encoded
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in words)
