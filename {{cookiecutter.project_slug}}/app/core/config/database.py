from typing import Any

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from sqlalchemy import URL

from app.core.config.base import MAX_PORT, GeneralSettings, Lifetime, Port, Wait, WholeWait, is_deployed
from app.core.config.database_url import check_driver, host_parts, looks_like_path, parse_url
from app.core.hosts import normalize_host

# Each connection of the pool takes a connection of the server (PostgreSQL) or a thread (SQLite).
MAX_POOL_SIZE = 1000


class DatabaseSettings(GeneralSettings):
    database_url: SecretStr | None = Field(
        default=None,
        description="URL of the database. It replaces the settings of its parts, from `DATABASE_HOST` to"
        " `DATABASE_NAME`.",
    )
    database_host: str | None = Field(
        default=None,
        description="Database server, or the folder of its Unix socket. Unset: the database is a file,"
        " `DATABASE_NAME`.",
    )
    database_port: Port = Field(default=5432, description="Port of the database server.")
    database_user: str | None = Field(default=None, description="Role with which the service signs in.")
    database_password: SecretStr | None = Field(
        default=None, description="Password of `DATABASE_USER`. Any characters are allowed, without escaping."
    )
    database_name: str | None = Field(
        default=None,
        description="Name of the database or, without `DATABASE_HOST`, path of the database file.",
    )
    database_owner_user: str | None = Field(
        default=None,
        description="Role that owns the tables; only the `db` commands use it, so that `DATABASE_USER` needs"
        " fewer rights. Database servers only.",
    )
    database_owner_password: SecretStr | None = Field(
        default=None,
        description="Password of `DATABASE_OWNER_USER`. Do not give it to the running service.",
    )
    database_owner_host: str | None = Field(
        default=None,
        description="Server that `DATABASE_OWNER_USER` connects to, such as the folder of a Unix socket. Unset: the"
        " same as the service.",
    )
    database_pool_size: int = Field(
        default=10,
        ge=1,
        le=MAX_POOL_SIZE,
        description="Number of connections of each worker. Further requests wait for a connection, first come, first"
        " served.",
    )
    database_pool_timeout_seconds: Wait = Field(
        default=5,
        description="Longest wait for a connection; after that, the request gets a 503.",
    )
    database_pool_recycle_seconds: Lifetime = Field(
        default=1800,
        description="A connection older than this is replaced.",
    )
    database_connect_timeout_seconds: WholeWait = Field(
        default=5,
        description="Longest time to connect to a database server. No effect on a database file.",
    )
    database_statement_timeout_seconds: Wait = Field(
        default=10,
        description="Longest time for a statement; a database server then cancels it, and the client gets a 503. With a"
        " database file, the longest wait for its lock: no running statement is cancelled.",
    )
    database_direct_statements: bool = Field(
        default=True,
        description="Whether typed statements run directly on the driver. `false`: they run through SQLAlchemy's own"
        " pool and `execute`, which takes several times the CPU time.",
    )
    database_pooler_host: str | None = Field(
        default=None,
        description="Connection pooler in front of the database server, such as pgbouncer. Unset: none.",
    )
    database_pooler_port: Port = Field(default=6432, description="Port of the connection pooler.")
    update_db: bool = Field(
        default=False,
        description="Whether to migrate the database at start. Workers that start together migrate it once, and a"
        " worker that replaces another one does not migrate it. A database that a newer release has migrated stays as"
        " it is.",
    )
    reset_db: bool = Field(
        default=False,
        description="Whether to delete all data at start and load the sample data. Refused in staging and production.",
    )

    @field_validator("database_host", "database_owner_host", "database_pooler_host")
    @classmethod
    def check_database_host(cls, value: str | None) -> str | None:
        # As in libpq, the host may be the folder of a Unix socket, or several servers separated by commas.
        return value if value is None or value.startswith("/") else ",".join(map(normalize_host, value.split(",")))

    @field_validator("database_url")
    @classmethod
    def check_database_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            url = parse_url(value.get_secret_value())
            if url.port is not None and not 1 <= url.port <= MAX_PORT:
                raise ValueError(f"must have a port from 1 to {MAX_PORT}")
            check_driver(url)
        return value

    @field_validator("database_name")
    @classmethod
    def check_parts(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("database_url", "invalid") is not None or "database_host" not in info.data:
            return value
        if value is None:
            raise ValueError(
                "no database is configured: set DATABASE_URL, or DATABASE_HOST, _USER, _PASSWORD and _NAME"
            )
        if info.data["database_host"] is None:
            if not looks_like_path(value):
                raise ValueError(
                    "is not a file path, and DATABASE_HOST is not set:"
                    " set DATABASE_HOST (PostgreSQL), or write the path of a file (SQLite)"
                )
            check_driver(URL.create("sqlite", database=value))
        else:
            check_driver(URL.create("postgresql"))
        return value

    @field_validator("reset_db")
    @classmethod
    def refuse_reset(cls, value: bool, info: ValidationInfo) -> bool:
        if value and is_deployed(info):
            raise ValueError("would delete all data: allowed only if ENVIRONMENT is local or test")
        return value

    @property
    def url(self) -> URL:
        """The URL of the database; its parts may contain any characters, which SQLAlchemy escapes."""
        if self.database_url is not None:
            return parse_url(self.database_url.get_secret_value())
        if self.database_host is None:
            return URL.create("sqlite+aiosqlite", database=self.database_name)
        return URL.create(
            "postgresql+psycopg",
            username=self.database_user,
            password=self.database_password.get_secret_value() if self.database_password else None,
            port=self.database_port,
            database=self.database_name,
            **host_parts(self.database_host, {}),
        )

    @property
    def owner_url(self) -> URL:
        """The URL for migrations, backups and restores: the same database, with DATABASE_OWNER_USER as user if set."""
        url = self.url
        if self.database_owner_user is None or url.get_backend_name() == "sqlite":
            return url
        parts: dict[str, Any] = {"host": url.host, "query": url.query}
        if self.database_owner_host is not None:
            parts = host_parts(self.database_owner_host, url.query)
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
        """The URL for the connections of the running service: the pooler's if DATABASE_POOLER_HOST is set."""
        if self.database_pooler_host is None or self.url.get_backend_name() == "sqlite":
            return self.url
        server = self.url.difference_update_query(["host", "port"])
        return server.set(host=self.database_pooler_host, port=self.database_pooler_port)
