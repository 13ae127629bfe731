from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from app.core.addresses import SenderAddress
from app.core.config.base import Folder, GeneralSettings, Host, Port, Wait, is_deployed


class EmailSettings(GeneralSettings, title="E-mail"):
    smtp_host: Host | None = Field(
        default=None,
        description="Mail server. Unset: if `ENVIRONMENT` is local or test, e-mails are written to files in"
        " `EMAIL_FOLDER`; otherwise, no e-mail is sent, and routes that need e-mail answer 503.",
    )
    smtp_port: Port = Field(default=587, description="Port of the mail server.")
    smtp_user: str | None = Field(
        default=None, description="User name with which the service signs in to the mail server. Unset: no sign-in."
    )
    smtp_password: SecretStr | None = Field(default=None, description="Password of `SMTP_USER`.")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        default="starttls",
        description="Encryption of the connection to the mail server: `starttls` upgrades an unencrypted connection,"
        " `tls` encrypts from the start and usually needs port 465.",
    )
    smtp_timeout_seconds: Wait = Field(
        default=30,
        description="Longest time for one attempt to send an e-mail; after that, the attempt counts as failed.",
    )
    email_from: SenderAddress | None = Field(
        default=None,
        description="Address that e-mails are sent from; only ASCII characters before the @. Required in staging and"
        " production if `SMTP_HOST` is set.",
    )
    email_folder: Folder = Field(
        default=Path("mail"),
        description="Folder for e-mails as files, if `SMTP_HOST` is not set and `ENVIRONMENT` is local or test.",
    )
    email_retry_limit: int = Field(
        default=20,
        ge=0,
        le=1000,
        description="Maximum number of retries after an e-mail could not be sent. After the last one, the e-mail counts"
        " as failed.",
    )
    email_retry_seconds: Wait = Field(
        default=10,
        description="Delay before the first retry; the delay doubles with each later retry, and jitter shortens it by"
        " up to half.",
    )
    email_retry_max_seconds: Wait = Field(
        default=3600, description="Longest delay between two attempts to send an e-mail."
    )
    outbox_poll_seconds: Wait = Field(
        default=5,
        description="Interval at which each worker looks for unsent e-mails of other workers. E-mails that a request"
        " queues are sent immediately by the worker that has served the request.",
    )

    @field_validator("smtp_security")
    @classmethod
    def refuse_open_password(cls, value: str, info: ValidationInfo) -> str:
        is_local = info.data.get("smtp_host") in {"localhost", "127.0.0.1", "::1"}
        if value == "none" and info.data.get("smtp_password") and is_deployed(info) and not is_local:
            raise ValueError("would send SMTP_PASSWORD unencrypted: use starttls or tls")
        return value

    @field_validator("email_from")
    @classmethod
    def require_sender(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("smtp_host") and is_deployed(info):
            raise ValueError("must be set if SMTP_HOST is set: e-mails are sent from this address")
        return value

    @property
    def sends_mail(self) -> bool:
        """Whether messages can be sent: to a mail server or, except in staging and production, to files."""
        return self.smtp_host is not None or not self.environment.is_deployed
