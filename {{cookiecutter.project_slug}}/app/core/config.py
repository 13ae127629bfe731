import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.core.addresses import SenderAddress, WebUrl, to_ascii_url
from app.core.hosts import (
    check_url,
    normalize_host,
    normalize_host_header,
    normalize_origin,
    normalize_proxies,
)
from app.core.project import ROOT

SECRETS_DIR = Path("/run/secrets")
PLACEHOLDER_SECRET = re.compile("change|secret|example|password|placeholder|your|replace-me", re.IGNORECASE)
MIN_SECRET_BYTES = 32
MIN_SECRET_CHARACTERS = 8
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
# What uvicorn and gunicorn take for a start that makes no sense to repeat.
EXIT_CANNOT_START = 3
DRIVERS = {"postgresql": "psycopg", "sqlite": "aiosqlite"}
DRIVER_MODULES = DRIVERS
# Parameters of libpq, besides the password, whose value itself is a secret and not the path of one.
SECRET_PARAMETERS = frozenset({"oauth_client_secret", "scram_client_key", "scram_server_key", "sslpassword"})
LOCAL_STORAGE_FOLDER = ROOT / "data" / "files"
# Clients remove the path segments . and .. from a URL.
PATH_PREFIX = re.compile(r"(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._~-]+)+")
REGION_NAME = re.compile(r"[A-Za-z0-9_-]+")
# The Authorization header of S3 separates its parts with slashes and commas.
ACCESS_KEY_ID = re.compile(r"[!-+.0-~-]+")
BUCKET_NAME = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
DAY_SECONDS = 24 * 3600
# A day in milliseconds fits into 32 bits, the width of the drivers' timeouts.
MAX_WAIT_SECONDS = DAY_SECONDS
MIN_WAIT_SECONDS = 0.001
# Ten years in seconds fit into 32 bits, the width of a cookie's Max-Age, and into datetime's range.
MAX_LIFETIME_SECONDS = 10 * 365 * DAY_SECONDS
MAX_COUNT = 1_000_000
MAX_PORT = 65535
# Each slot is a server connection (PostgreSQL) or a thread (SQLite).
MAX_POOL_SIZE = 1000
# Argon2's minimum memory per lane, in KiB.
MIN_LANE_MEMORY = 8
# Kernel limit of a unix socket's path, and file system limits of a name and a path.
MAX_SOCKET_PATH_BYTES = 103 if sys.platform == "darwin" else 107
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 1023
WORKER_CLASSES = ("uvicorn_worker.UvicornWorker", "uvicorn_worker.UvicornH11Worker")
# Only gunicorn has this worker class.
GUNICORN_WORKER_CLASS = "asgi"


class ConfigurationError(Exception):
    """The configuration cannot work; the message has one line a problem and no rejected value."""


class Environment(StrEnum):
    LOCAL = "local"
    TEST = "test"
    STAGING = "staging"
    PRODUCTION = "production"

    @property
    def is_deployed(self) -> bool:
        return self in {Environment.STAGING, Environment.PRODUCTION}


def _split_list(value: object) -> object:
    """Read `a, b` or, where a value has a comma, a JSON array."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError("starts like a JSON array and is none") from error
    return [item.strip() for item in value.split(",") if item.strip()]


def check_path(path: Path) -> Path:
    """Raise ValueError for a path longer than file systems allow."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES or any(len(os.fsencode(part)) > MAX_NAME_BYTES for part in path.parts):
        raise ValueError(f"must be a path of at most {MAX_PATH_BYTES} bytes, {MAX_NAME_BYTES} for each name")
    return path


def check_folder(path: Path) -> Path:
    if os.path.isfile(path):
        raise ValueError("must be a folder, but a file has this path")
    return check_path(path)


StrList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)]
SecretList = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split_list)]
# Bounded types for settings, also for those of features.
Host = Annotated[str, AfterValidator(normalize_host)]
Url = Annotated[str, AfterValidator(check_url)]
Folder = Annotated[Path, AfterValidator(check_folder)]
Port = Annotated[int, Field(ge=1, le=MAX_PORT)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
# Durations in seconds: Wait and WholeWait for timeouts, Lifetime for tokens and cookies.
Wait = Annotated[float, Field(ge=MIN_WAIT_SECONDS, le=MAX_WAIT_SECONDS)]
WholeWait = Annotated[int, Field(ge=1, le=MAX_WAIT_SECONDS)]
Lifetime = Annotated[int, Field(ge=1, le=MAX_LIFETIME_SECONDS)]


def read_env_file(file: Path) -> dict[str, str | None]:
    """Return the values of a `.env` as they are written: `${NAME}` in a password stands for itself."""
    return dotenv_values(file, encoding="utf-8", interpolate=False)


class _DotEnvSource(DotEnvSettingsSource):
    # pydantic-settings has no option for it, and python-dotenv would interpolate even in single quotes.
    def _read_env_file(self, file_path: Path) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in read_env_file(file_path).items() if value}


class _Configuration(BaseSettings):
    model_config = SettingsConfigDict(
        env_file=ROOT / ".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        assert isinstance(dotenv_settings, DotEnvSettingsSource)  # noqa: S101  # pydantic-settings made it: for the type checker
        own = _DotEnvSource(settings_cls, env_file=dotenv_settings.env_file)
        return init_settings, env_settings, own, file_secret_settings


ConfigurationT = TypeVar("ConfigurationT", bound=_Configuration)


class FeatureSettings(_Configuration):
    """What a feature alone reads, from where the service reads its own; `Settings.of` finds it."""

    @property
    def notes(self) -> list[str]:
        """What works and may still surprise."""
        return []


class ServerSettings(_Configuration):
    """What the process manager reads; it needs no secret."""

    host: Host = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=MAX_PORT)
    unix_socket: Path | None = None
    web_concurrency: int | None = Field(default=None, ge=1, le=1000)
    worker_class: str = "uvicorn_worker.UvicornWorker"
    worker_timeout_seconds: WholeWait = 30
    graceful_timeout_seconds: WholeWait = 30
    keepalive_seconds: WholeWait = 5
    max_requests: int = Field(default=0, ge=0, le=1000 * MAX_COUNT)
    forwarded_allow_ips: StrList = ("127.0.0.1", "::1")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["console", "json"] = "json"

    @field_validator("log_level", "log_format", mode="before")
    @classmethod
    def ignore_case(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str):
            return value
        return value.upper() if info.field_name == "log_level" else value.lower()

    @field_validator("unix_socket")
    @classmethod
    def check_socket(cls, value: Path | None) -> Path | None:
        if value is not None and len(os.fsencode(value)) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"must be a path of at most {MAX_SOCKET_PATH_BYTES} bytes")
        if value is not None and os.path.isdir(value):
            raise ValueError("must be the path of the socket file, not a folder")
        return value

    @field_validator("worker_class")
    @classmethod
    def check_worker(cls, value: str) -> str:
        known = WORKER_CLASSES + ((GUNICORN_WORKER_CLASS,) if importlib.util.find_spec("gunicorn") else ())
        if value not in known:
            raise ValueError(f"must be one of {', '.join(known)}")
        return value

    @field_validator("forwarded_allow_ips")
    @classmethod
    def trust_no_stranger(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "*" in value:
            raise ValueError(
                "must name the proxies: with * anybody can forge an address (a unix socket needs no entry)"
            )
        return normalize_proxies(value)


FeatureSettingsT = TypeVar("FeatureSettingsT", bound=FeatureSettings)


class Settings(ServerSettings):
    """The whole configuration, from the environment, `.env`, or files in /run/secrets."""

    _of_features: dict[type[FeatureSettings], Any] = PrivateAttr(default_factory=dict)

    environment: Environment = Environment.LOCAL
    api_prefix: str = "/api/v1"
    secret_key: SecretStr
    secret_key_fallbacks: SecretList = ()
    access_token_lifetime_seconds: Lifetime = 15 * 60
    refresh_token_lifetime_seconds: Lifetime = 30 * DAY_SECONDS
    session_max_lifetime_seconds: Lifetime | None = None
    refresh_reuse_grace_seconds: int = Field(default=5, ge=0, le=MAX_WAIT_SECONDS)
    # OWASP's first recommendation for Argon2id; memory in KiB.
    password_hash_time_cost: int = Field(default=2, ge=1, le=100)
    password_hash_memory_cost: int = Field(default=19 * 1024, ge=MIN_LANE_MEMORY, le=4 * 1024**2)
    password_hash_parallelism: int = Field(default=1, ge=1, le=64)
    password_hash_concurrency: int = Field(default=1, ge=1, le=1000)
    # Unset: a quarter of max_concurrent_requests.
    password_hash_queue: Count | None = None
    breached_passwords_url: WebUrl | None = None
    auth_cache_seconds: float = Field(default=0, ge=0, le=MAX_WAIT_SECONDS)
    max_sessions_per_user: Count = 20
    # 0: without a limit.
    max_rows_per_user: int = Field(default=10_000, ge=0, le=MAX_COUNT)
    admin_second_factor_required: bool = False
    throttling: bool = True
    throttle_account_attempts: Count = 5
    throttle_address_attempts: Count = 50
    throttle_account_changes: Count = 100
    throttle_max_delay_seconds: Lifetime = 15 * 60
    throttle_memory_seconds: Lifetime = 3600
    # The database keeps them for about as long as the least: see the migration of audit_events.
    audit_log_lifetime_seconds: int = Field(default=365 * DAY_SECONDS, ge=DAY_SECONDS, le=10 * MAX_LIFETIME_SECONDS)
    purge_interval_seconds: int = Field(default=3600, ge=0, le=MAX_LIFETIME_SECONDS)

    database_url: SecretStr | None = None
    database_host: str | None = None
    database_port: Port = 5432
    database_user: str | None = None
    database_password: SecretStr | None = None
    database_name: str | None = None
    database_owner_user: str | None = None
    database_owner_password: SecretStr | None = None
    database_owner_host: str | None = None
    database_pool_size: int = Field(default=10, ge=1, le=MAX_POOL_SIZE)
    database_pool_timeout_seconds: Wait = 5
    database_pool_recycle_seconds: Lifetime = 1800
    database_connect_timeout_seconds: WholeWait = 5
    database_statement_timeout_seconds: Wait = 10
    database_pooler_host: str | None = None
    database_pooler_port: Port = 6432
    update_db: bool = False
    reset_db: bool = False

    allowed_hosts: StrList = LOCAL_HOSTS
    cors_origins: StrList = ()
    cors_allow_credentials: bool = False
    docs_enabled: bool | None = None
    public_url: WebUrl | None = None
    registration_open: bool = True
    max_concurrent_requests: Count = 200
    max_body_bytes: int = Field(default=1024 * 1024, ge=1, le=1024**4)
    access_log: bool = True
    readiness_timeout_seconds: Wait = 2

    smtp_host: Host | None = None
    smtp_port: Port = 587
    smtp_user: str | None = None
    smtp_password: SecretStr | None = None
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    smtp_timeout_seconds: Wait = 30
    email_from: SenderAddress | None = None
    email_folder: Folder = Path("mail")
    email_retry_limit: int = Field(default=20, ge=0, le=1000)
    email_retry_seconds: Wait = 10
    email_retry_max_seconds: Wait = 3600
    outbox_poll_seconds: Wait = 5
    account_pages_url: WebUrl | None = None
    email_verification_required: bool = False

    storage_folder: Folder | None = None
    storage_s3_bucket: str | None = None
    storage_s3_endpoint: Url | None = None
    storage_s3_region: str = "us-east-1"
    storage_s3_access_key_id: str | None = None
    storage_s3_secret_access_key: SecretStr | None = None

    # Field validators and not one model validator: they all run, so that one start names every problem. A field sees
    # those that stand above it.

    @field_validator("secret_key")
    @classmethod
    def refuse_weak_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        _check_secret(value, deployed=_is_deployed(info))
        return value

    @field_validator("secret_key_fallbacks")
    @classmethod
    def refuse_weak_fallbacks(cls, value: tuple[SecretStr, ...], info: ValidationInfo) -> tuple[SecretStr, ...]:
        for secret in value:
            _check_secret(secret, deployed=_is_deployed(info))
        return value

    @field_validator("api_prefix")
    @classmethod
    def check_prefix(cls, value: str) -> str:
        if not PATH_PREFIX.fullmatch(value):
            raise ValueError("must be a path such as /api/v1, of letters, digits and the characters - . _ ~")
        return value

    @field_validator("password_hash_parallelism")
    @classmethod
    def check_lanes(cls, value: int, info: ValidationInfo) -> int:
        memory = info.data.get("password_hash_memory_cost")
        if memory is not None and memory < MIN_LANE_MEMORY * value:
            raise ValueError(f"needs a PASSWORD_HASH_MEMORY_COST of at least {MIN_LANE_MEMORY * value}")
        return value

    @field_validator("password_hash_concurrency")
    @classmethod
    def check_memory(cls, value: int, info: ValidationInfo) -> int:
        # Imported here because that module imports this one.
        from app.core.server import usable_memory

        memory, usable = info.data.get("password_hash_memory_cost"), usable_memory()
        if memory is not None and usable is not None and memory * 1024 * value > usable:
            raise ValueError("times PASSWORD_HASH_MEMORY_COST exceeds the available memory: lower one of them")
        return value

    @field_validator("database_host", "database_owner_host", "database_pooler_host")
    @classmethod
    def check_database_host(cls, value: str | None) -> str | None:
        # The folder of a unix socket, or several servers, as libpq takes them.
        return value if value is None or value.startswith("/") else ",".join(map(normalize_host, value.split(",")))

    @field_validator("database_url")
    @classmethod
    def check_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            url = _parse_url(value.get_secret_value())
            if url.port is not None and not 1 <= url.port <= MAX_PORT:
                raise ValueError(f"must have a port from 1 to {MAX_PORT}")
            _check_driver(url)
        return value

    @field_validator("database_name")
    @classmethod
    def check_parts(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("database_url", "invalid") is not None or "database_host" not in info.data:
            return value
        if value is None:
            raise ValueError("no database is named: set DATABASE_URL, or DATABASE_HOST, _USER, _PASSWORD and _NAME")
        if info.data["database_host"] is None:
            if not _looks_like_path(value):
                raise ValueError("is no file's path (SQLite), and there is no DATABASE_HOST (PostgreSQL)")
            _check_driver(URL.create("sqlite", database=value))
        else:
            _check_driver(URL.create("postgresql"))
        return value

    @field_validator("reset_db")
    @classmethod
    def refuse_reset(cls, value: bool, info: ValidationInfo) -> bool:
        if value and _is_deployed(info):
            raise ValueError("deletes all data: only where ENVIRONMENT is local or test")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def require_hosts(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        hosts = tuple(map(normalize_host_header, value))
        if not hosts:
            raise ValueError("must name the hosts that the service is reached by")
        if _is_deployed(info):
            if not set(hosts) - set(LOCAL_HOSTS):
                raise ValueError("must name the hosts that the service is reached by")
            if "*" in hosts:
                raise ValueError("must not be *")
        return hosts

    @field_validator("cors_origins")
    @classmethod
    def check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(normalize_origin, value))

    @field_validator("cors_allow_credentials")
    @classmethod
    def refuse_open_cors(cls, value: bool, info: ValidationInfo) -> bool:
        if value and "*" in info.data.get("cors_origins", ()):
            raise ValueError("must not be combined with CORS_ORIGINS=*: any site could act for a user")
        return value

    @field_validator("smtp_security")
    @classmethod
    def refuse_open_password(cls, value: str, info: ValidationInfo) -> str:
        is_local = info.data.get("smtp_host") in {"localhost", "127.0.0.1", "::1"}
        if value == "none" and info.data.get("smtp_password") and _is_deployed(info) and not is_local:
            raise ValueError("would show SMTP_PASSWORD to the network: starttls, or tls")
        return value

    @field_validator("email_from")
    @classmethod
    def require_sender(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("smtp_host") and _is_deployed(info):
            raise ValueError("must be set together with SMTP_HOST: the address that messages come from")
        return value

    @field_validator("email_verification_required")
    @classmethod
    def refuse_silent_verification(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not info.data.get("smtp_host") and _is_deployed(info):
            raise ValueError("needs a mail server: set SMTP_HOST")
        return value

    @field_validator("storage_folder")
    @classmethod
    def require_absolute_folder(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and not value.is_absolute() and _is_deployed(info):
            raise ValueError("must be an absolute path: a folder inside a release is deleted together with it")
        return value

    @field_validator("storage_s3_bucket")
    @classmethod
    def check_bucket(cls, value: str | None) -> str | None:
        if value is not None and not BUCKET_NAME.fullmatch(value):
            raise ValueError("must have 3 to 63 lower-case letters, digits, dots and hyphens")
        return value

    @field_validator("storage_s3_region")
    @classmethod
    def check_region(cls, value: str) -> str:
        if not REGION_NAME.fullmatch(value):
            raise ValueError("must be a name such as us-east-1, of letters, digits, hyphens and underscores")
        return value

    @field_validator("storage_s3_access_key_id")
    @classmethod
    def check_key_id(cls, value: str | None) -> str | None:
        if value is not None and not ACCESS_KEY_ID.fullmatch(value):
            raise ValueError("must be letters, digits and punctuation, without a space, a slash or a comma")
        return value

    @field_validator("storage_s3_endpoint", "storage_s3_access_key_id")
    @classmethod
    def require_bucket(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("storage_s3_bucket", "invalid") is None:
            raise ValueError("has no effect without a bucket: set STORAGE_S3_BUCKET")
        return value

    @field_validator("storage_s3_secret_access_key")
    @classmethod
    def require_whole_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        key_id = info.data.get("storage_s3_access_key_id", "invalid")
        if key_id != "invalid" and (value is None) != (key_id is None):
            raise ValueError("must be set together with STORAGE_S3_ACCESS_KEY_ID")
        return value

    @property
    def url(self) -> URL:
        """The address of the database; the parts are escaped whatever characters they contain."""
        if self.database_url is not None:
            return _parse_url(self.database_url.get_secret_value())
        if self.database_host is None:
            return URL.create("sqlite+aiosqlite", database=self.database_name)
        return URL.create(
            "postgresql+psycopg",
            username=self.database_user,
            password=self.database_password.get_secret_value() if self.database_password else None,
            port=self.database_port,
            database=self.database_name,
            **_host_parts(self.database_host, {}),
        )

    @property
    def owner_url(self) -> URL:
        """The same database as the owner of its tables, for migrations, backups and restores."""
        url = self.url
        if self.database_owner_user is None or url.get_backend_name() == "sqlite":
            return url
        parts: dict[str, Any] = {"host": url.host, "query": url.query}
        if self.database_owner_host is not None:
            parts = _host_parts(self.database_owner_host, url.query)
        return URL.create(
            url.drivername,
            username=self.database_owner_user,
            password=self.database_owner_password.get_secret_value() if self.database_owner_password else None,
            port=url.port,
            database=url.database,
            **parts,
        )

    @property
    def pooled_url(self) -> URL:
        """What the service's own connections go to: the same, through the pooler where there is one."""
        if self.database_pooler_host is None or self.url.get_backend_name() == "sqlite":
            return self.url
        server = self.url.difference_update_query(["host", "port"])
        return server.set(host=self.database_pooler_host, port=self.database_pooler_port)

    @property
    def serves_docs(self) -> bool:
        return self.environment is not Environment.PRODUCTION if self.docs_enabled is None else self.docs_enabled

    @property
    def service_url(self) -> str:
        """Where people reach the service; https and the first allowed host unless PUBLIC_URL says otherwise."""
        host = self.allowed_hosts[0].removeprefix("*.") if self.allowed_hosts else "localhost"
        return (self.public_url or to_ascii_url(f"https://{'localhost' if host == '*' else host}")).rstrip("/")

    @property
    def sender(self) -> str:
        return self.email_from or f"no-reply@{self.mail_host}"

    @property
    def mail_host(self) -> str:
        """The name in the identifiers of messages, and what the mail server is greeted with."""
        host = (urlsplit(self.service_url).hostname or "localhost").rstrip(".")
        try:
            ip = ip_address(host)
        except ValueError:
            return host
        # RFC 5321 §4.1.3.
        return f"[IPv6:{ip}]" if ip.version == 6 else f"[{ip}]"

    @property
    def sends_mail(self) -> bool:
        """Locally messages become files; deployed they need a server."""
        return self.smtp_host is not None or not self.environment.is_deployed

    @property
    def files_folder(self) -> Path | None:
        """Where files are stored, unless it is in a bucket; deployed, there is no default."""
        if self.storage_folder is not None:
            return ROOT / self.storage_folder
        return None if self.environment.is_deployed else LOCAL_STORAGE_FOLDER

    @property
    def stores_files(self) -> bool:
        return self.storage_s3_bucket is not None or self.files_folder is not None

    def of(self, kind: type[FeatureSettingsT]) -> FeatureSettingsT:
        """Return a feature's settings; their defaults where none were read."""
        settings: FeatureSettingsT = self._of_features.get(kind, kind.model_construct())
        return settings

    def join(self, *of_features: FeatureSettings) -> "Settings":
        joined = self.model_copy()
        joined._of_features = {type(settings): settings for settings in of_features}
        return joined

    @property
    def notes(self) -> list[str]:
        """What works and may still surprise."""
        notes = [note for settings in self._of_features.values() for note in settings.notes]
        if self.database_url is not None and (self.database_host or self.database_name):
            notes.append("DATABASE_URL is set: DATABASE_HOST, _PORT, _USER, _PASSWORD and _NAME are ignored")
        if not self.sends_mail:
            notes.append("SMTP_HOST is not set: nothing is sent, and routes that need mail answer 503")
        if not self.stores_files:
            notes.append("STORAGE_FOLDER is not set: no file can be stored, and routes that store files answer 503")
        if self.storage_s3_bucket is not None and self.storage_folder is not None:
            notes.append("STORAGE_S3_BUCKET is set: STORAGE_FOLDER is ignored")
        return notes


def load_settings(of_features: Sequence[type[FeatureSettings]] = ()) -> Settings:
    """Read the configuration, and that of features.

    Raises ConfigurationError with every problem at once.
    """
    problems: list[str] = []
    settings = _read(Settings, problems)
    others = [_read(kind, problems) for kind in of_features]
    if settings is None or problems:
        raise ConfigurationError("The configuration cannot work:\n" + "\n".join(problems))
    return settings.join(*(other for other in others if other is not None))


def _read(kind: type[ConfigurationT], problems: list[str]) -> ConfigurationT | None:
    try:
        return kind(_secrets_dir=SECRETS_DIR if SECRETS_DIR.is_dir() else None)
    except ValidationError as error:
        errors = error.errors(include_input=False)
        problems += [f"  {_env_name(problem['loc'])}: {_explain(problem)}" for problem in errors]
    except (SettingsError, UnicodeDecodeError, OSError) as error:
        problem = f"  {_explain_source(error)}"
        # Each kind reads the same .env.
        if problem not in problems:
            problems.append(problem)
    return None


def load_settings_or_exit(of_features: Sequence[type[FeatureSettings]] = ()) -> Settings:
    """For processes that cannot run without: explain every problem, and end."""
    try:
        return load_settings(of_features)
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EXIT_CANNOT_START) from None


def _env_name(location: tuple[int | str, ...]) -> str:
    return str(location[0]).upper() if location else "settings"


def _explain(problem: ErrorDetails) -> str:
    if problem["type"] == "missing":
        return "must be set"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _explain_source(error: Exception) -> str:
    source, cause = (str(error), error.__cause__) if isinstance(error, SettingsError) else (".env", error)
    if isinstance(cause, UnicodeDecodeError):
        # Its own message quotes what may be a secret.
        return f"{source}: must be UTF-8"
    return f"{source}: {cause.strerror}" if isinstance(cause, OSError) else source


def _is_deployed(info: ValidationInfo) -> bool:
    # An environment that is itself wrong is treated like the strictest one.
    environment: Environment = info.data.get("environment", Environment.PRODUCTION)
    return environment.is_deployed


def _check_secret(value: SecretStr, *, deployed: bool) -> None:
    secret = value.get_secret_value()
    if not secret:
        raise ValueError("must not be empty")
    if not deployed:
        return
    if len(secret.encode()) < MIN_SECRET_BYTES:
        raise ValueError(f"must have at least {MIN_SECRET_BYTES} bytes")
    if len(set(secret)) < MIN_SECRET_CHARACTERS:
        raise ValueError(f"must have at least {MIN_SECRET_CHARACTERS} different characters")
    if PLACEHOLDER_SECRET.search(secret):
        raise ValueError("looks like a placeholder: make one with `openssl rand -base64 48`")


def _parse_url(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # The parser's message may quote a part of the password.
        raise ValueError("is not a URL such as postgresql://user:password@host:5432/name") from None
    backend = "postgresql" if url.drivername == "postgres" else url.get_backend_name()
    if backend not in DRIVERS:
        raise ValueError("must start with postgresql:// or sqlite:///")
    if backend == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("must name a file: a database in memory is gone with each connection")
    return _hide_password(url.set(drivername=f"{backend}+{DRIVERS[backend]}"))


def _hide_password(url: URL) -> URL:
    """Move user and password from the query to where SQLAlchemy hides the password in texts."""
    if secret := SECRET_PARAMETERS & url.query.keys():
        raise ValueError(f"must not have {', '.join(sorted(secret))} in the query: use a service file (PGSERVICEFILE)")
    # The driver would prefer those of the query, and the last of several.
    sent = {name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()}
    user, password = sent.get("user", url.username), sent.get("password", url.password)
    return url.difference_update_query(["user", "password"]).set(username=user, password=password)


def _host_parts(host: str, query: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `URL.create` for a server, or for the folder of its unix socket."""
    others = {name: value for name, value in query.items() if name != "host"}
    return {"query": {**others, "host": host}} if host.startswith("/") else {"host": host, "query": others}


def _check_driver(url: URL) -> None:
    driver = DRIVER_MODULES[url.get_backend_name()]
    if importlib.util.find_spec(driver) is None:
        raise ValueError(f"needs the driver {driver}, which is not installed")


def _looks_like_path(name: str) -> bool:
    return "/" in name or "\\" in name or bool(Path(name).suffix)


def env_names(*kinds: type[BaseSettings]) -> list[str]:
    return [name.upper() for kind in kinds or (Settings,) for name in kind.model_fields]
