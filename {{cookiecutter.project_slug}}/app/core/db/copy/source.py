"""The database that is copied: it is only read, in one snapshot.

The engine is a synchronous one, because Python's own driver then reads a database file: a project whose service uses
another database lacks the asynchronous driver.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine
from sqlalchemy.exc import SQLAlchemyError

from app.core.config.settings import Settings
from app.core.db.copy.errors import CopyError
from app.core.errors import first_line

LOCK_TIMEOUT_SECONDS = 60
FIRST_READ = {"postgresql": "SELECT 1", "sqlite": "SELECT 1 FROM sqlite_schema"}
# The drivers with which the service itself would use the source, as `uv run --with` names them.
PACKAGES = {"postgresql": "'psycopg[binary]'", "sqlite": "aiosqlite"}
MISSING_DRIVER = (
    "The source needs the driver psycopg, which is not installed. Run the command with it:"
    f" uv run --with {PACKAGES['postgresql']} python -m app db copy …"
)


@contextmanager
def open_source(url: URL, settings: Settings) -> Iterator[Connection]:
    """Open the database and begin a transaction whose reads all see the same snapshot."""
    is_sqlite = url.get_backend_name() == "sqlite"
    if not is_sqlite and find_spec("psycopg") is None:
        raise CopyError(MISSING_DRIVER)
    engine = _sqlite_engine(url) if is_sqlite else _postgresql_engine(url, settings)
    try:
        with _connect(engine, url) as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _connect(engine: Engine, url: URL) -> Iterator[Connection]:
    with ExitStack() as stack:
        try:
            connection = stack.enter_context(engine.connect())
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN")
            else:
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            # The first read takes the snapshot, and shows whether a file is a database.
            connection.exec_driver_sql(FIRST_READ[engine.dialect.name])
        except SQLAlchemyError as error:
            place = url.render_as_string(hide_password=True)
            raise CopyError(f"The source {place} cannot be read: {first_line(error)}") from error
        yield connection


def _sqlite_engine(url: URL) -> Engine:
    file = Path(url.database or "").resolve()
    # Readers of a file in WAL mode create files beside it, unless they declare that nobody changes it. Without a log,
    # nobody does: the service keeps the log while it has the file open.
    is_unchangeable = not os.access(file.parent, os.W_OK) and not file.with_name(f"{file.name}-wal").exists()
    address = f"{file.as_uri()}?mode=ro{'&immutable=1' if is_unchangeable else ''}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(address, uri=True, isolation_level=None, timeout=LOCK_TIMEOUT_SECONDS)
        # Otherwise the driver would fail at a text that is not UTF-8 without naming its row.
        connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
        return connection

    return create_engine("sqlite://", creator=connect, poolclass=NullPool)


def _postgresql_engine(url: URL, settings: Settings) -> Engine:
    options = (
        "-c statement_timeout=0 -c idle_in_transaction_session_timeout=0 -c timezone=UTC -c intervalstyle=postgres"
    )
    arguments = {
        # SQLAlchemy changes it for the transaction.
        "autocommit": True,
        "client_encoding": "UTF8",
        "connect_timeout": settings.database_connect_timeout_seconds,
        "options": f"{url.query.get('options', '')} {options}".strip(),
    }
    return create_engine(url, connect_args=arguments, poolclass=NullPool)
