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
        description="URL of the database. If `DATABASE_URL` is set, the settings from `DATABASE_HOST` to"
        " `DATABASE_NAME` are ignored.",
    )
    database_host: str | None = Field(
        default=None,
        description="Host of the database server, or the folder of its Unix socket. If neither `DATABASE_HOST` nor"
        " `DATABASE_URL` is set, the database is the file `DATABASE_NAME`.",
    )
    database_port: Port = Field(default=5432, description="Port of the database server.")
    database_user: str | None = Field(
        default=None, description="Role with which the service signs in to the database server."
    )
    database_password: SecretStr | None = Field(
        default=None,
        description="Password of `DATABASE_USER`. Unlike in `DATABASE_URL`, no character needs percent-encoding.",
    )
    database_name: str | None = Field(
        default=None,
        description="Name of the database or, without `DATABASE_HOST`, path of the database file.",
    )
    database_owner_user: str | None = Field(
        default=None,
        description="Role that owns the tables, for migrations, backups and restores; `DATABASE_USER` then needs fewer"
        " rights. Unset: the service's own role. No effect on a database file.",
    )
    database_owner_password: SecretStr | None = Field(
        default=None,
        description="Password of `DATABASE_OWNER_USER`. Set the password only for the `db` commands, so that the"
        " running service does not know the password.",
    )
    database_owner_host: str | None = Field(
        default=None,
        description="Host through which `DATABASE_OWNER_USER` reaches the same database server, or the folder of the"
        " server's Unix socket. Unset: `DATABASE_HOST`, or the host in `DATABASE_URL`.",
    )
    database_pool_size: int = Field(
        default=10,
        ge=1,
        le=MAX_POOL_SIZE,
        description="Maximum number of database connections of each worker. A request that finds all of them in use"
        " waits for one, first come, first served.",
    )
    database_pool_timeout_seconds: Wait = Field(
        default=5,
        description="Longest time that a request waits for a free database connection; after that, the request gets a"
        " 503.",
    )
    database_pool_recycle_seconds: Lifetime = Field(
        default=1800,
        description="Maximum age of a database connection; an older one is replaced before its next use.",
    )
    database_connect_timeout_seconds: WholeWait = Field(
        default=5,
        description="Longest time to connect to a database server; after that, the attempt fails. No effect on a"
        " database file.",
    )
    database_statement_timeout_seconds: Wait = Field(
        default=10,
        description="Longest time that an SQL statement may run; after that, the database server cancels the statement,"
        " and the request gets a 503. Behind a connection pooler, set this limit for the database role instead. With a"
        " database file: longest wait for the lock of the file; a running statement is never cancelled.",
    )
    database_direct_statements: bool = Field(
        default=True,
        description="Whether the service runs its `Query` and `Command` statements (`app/core/db/query.py`) directly on"
        " the database driver. `false`: through SQLAlchemy's own pool and `execute`, which takes several times the CPU"
        " time.",
    )
    database_pooler_host: str | None = Field(
        default=None,
        description="Host of a connection pooler, such as pgbouncer, through which the running service reaches the"
        " database server; migrations and backups bypass the pooler. Unset: no pooler.",
    )
    database_pooler_port: Port = Field(default=6432, description="Port of the connection pooler.")
    update_db: bool = Field(
        default=False,
        description="Whether the service migrates the database when it starts: once for all workers, and never when a"
        " single worker is replaced. If a newer release has already migrated the database, the schema stays unchanged.",
    )
    reset_db: bool = Field(
        default=False,
        description="Whether the service deletes all data at each start, and then loads the sample data. Refused in"
        " staging and production.",
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
                "must be set, because DATABASE_URL is not: write the name of a database on the server DATABASE_HOST"
                " (PostgreSQL), or the path of a file such as data/app.sqlite3 (SQLite)"
            )
        if info.data["database_host"] is None:
            if not looks_like_path(value):
                raise ValueError(
                    "is not a file path, and DATABASE_HOST is not set:"
                    " set DATABASE_HOST (PostgreSQL), or write the path of a file such as data/app.sqlite3 (SQLite)"
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
