import asyncio
import ssl
from contextlib import suppress
from functools import cache
from pathlib import Path

import structlog
from aiosmtplib import SMTP, SMTPDataError, SMTPException, SMTPNotSupported, SMTPRecipientsRefused

from app.core.config.settings import Settings
from app.core.db.models import utc_now
from app.core.email.message import ComposedEmail, RefusedEmailError

logger = structlog.get_logger(__name__)
QUIT_TIMEOUT_SECONDS = 1
PERMANENT = 500


async def deliver(settings: Settings, message: ComposedEmail) -> None:
    """Send a message; raises RefusedEmailError for permanent failures, SMTPException or OSError for others."""
    if settings.smtp_host is None:
        path = await asyncio.to_thread(_write, settings.email_folder, message)
        logger.info("message written to a file because SMTP_HOST is not set", path=str(path))
        return
    try:
        async with asyncio.timeout(settings.smtp_timeout_seconds):
            await _send(settings, settings.smtp_host, message)
    except SMTPRecipientsRefused as error:
        if all(refusal.code >= PERMANENT for refusal in error.recipients):
            raise RefusedEmailError(error.recipients[0].message) from error
        raise
    except SMTPDataError as error:
        if error.code >= PERMANENT:
            raise RefusedEmailError(error.message) from error
        raise


async def _send(settings: Settings, host: str, message: ComposedEmail) -> None:
    options = [] if message.recipient.isascii() else ["SMTPUTF8"]
    server = SMTP(
        hostname=host,
        port=settings.smtp_port,
        username=settings.smtp_user,
        password=settings.smtp_password.get_secret_value() if settings.smtp_password else None,
        # By default the library looks up the host name of this machine in DNS.
        local_hostname=settings.mail_host,
        timeout=settings.smtp_timeout_seconds,
        use_tls=settings.smtp_security == "tls",
        start_tls=settings.smtp_security == "starttls",
        tls_context=None if settings.smtp_security == "none" else await asyncio.to_thread(_tls_context),
    )
    try:
        await server.connect()
        try:
            await server.sendmail(message.sender, message.recipient, message.content, mail_options=options)
        except SMTPNotSupported as error:
            raise RefusedEmailError(
                "the mail server does not support SMTPUTF8, which the recipient's address needs"
            ) from error
        # The server has accepted the message: a failed QUIT must not cause a retry.
        with suppress(SMTPException, OSError):
            await server.quit(timeout=QUIT_TIMEOUT_SECONDS)
    finally:
        server.close()


@cache
def _tls_context() -> ssl.SSLContext:
    """Return the TLS context, cached: loading the system's certificates takes longer than sending a message."""
    return ssl.create_default_context()


def _write(folder: Path, message: ComposedEmail) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / f"{utc_now():%Y%m%dT%H%M%SZ}-{message.id}.eml").absolute()
    partial = path.with_suffix(".partial")
    partial.touch(mode=0o600)
    partial.write_bytes(message.content)
    return partial.replace(path)
