from ipaddress import ip_address
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import PrivateAttr

from app.core.config.accounts import AccountSettings
from app.core.config.base import FeatureSettings
from app.core.config.database import DatabaseSettings
from app.core.config.email import EmailSettings
from app.core.config.http import HttpSettings
from app.core.config.security import SecuritySettings
from app.core.config.server import ServerSettings
from app.core.config.storage import StorageSettings

FeatureSettingsT = TypeVar("FeatureSettingsT", bound=FeatureSettings)


# Pydantic validates the fields of the last base class first. A validator therefore sees the values of the classes that
# are listed below its own.
class Settings(
    StorageSettings,
    AccountSettings,
    EmailSettings,
    DatabaseSettings,
    SecuritySettings,
    HttpSettings,
    ServerSettings,
):
    """The whole configuration, from the environment, `.env`, or files in /run/secrets."""

    _of_features: dict[type[FeatureSettings], Any] = PrivateAttr(default_factory=dict)

    @property
    def sender(self) -> str:
        return self.email_from or f"no-reply@{self.mail_host}"

    @property
    def mail_host(self) -> str:
        """The host name in message IDs and in the greeting (EHLO) that is sent to the mail server."""
        host = (urlsplit(self.service_url).hostname or "localhost").rstrip(".")
        try:
            ip = ip_address(host)
        except ValueError:
            return host
        # An address literal (RFC 5321 §4.1.3).
        return f"[IPv6:{ip}]" if ip.version == 6 else f"[{ip}]"

    def of(self, kind: type[FeatureSettingsT]) -> FeatureSettingsT:
        """Return a feature's settings; their defaults if none were read."""
        settings: FeatureSettingsT = self._of_features.get(kind, kind.model_construct())
        return settings

    def join(self, *of_features: FeatureSettings) -> "Settings":
        joined = self.model_copy()
        joined._of_features = {type(settings): settings for settings in of_features}
        return joined

    @property
    def notes(self) -> list[str]:
        """Warnings about a valid configuration."""
        notes = [note for settings in self._of_features.values() for note in settings.notes]
        if self.database_url is not None and (self.database_host or self.database_name):
            notes.append("DATABASE_URL is set: the settings from DATABASE_HOST to DATABASE_NAME are ignored")
        if not self.sends_mail:
            notes.append("SMTP_HOST is not set: no e-mail is sent, and routes that need e-mail answer 503")
        if not self.stores_files:
            notes.append("neither STORAGE_FOLDER nor STORAGE_S3_BUCKET is set: routes that store files answer 503")
        if self.storage_s3_bucket is not None and self.storage_folder is not None:
            notes.append("STORAGE_S3_BUCKET is set: STORAGE_FOLDER is ignored")
        return notes
