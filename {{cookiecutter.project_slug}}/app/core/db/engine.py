import select
from functools import partial
from typing import Any

from sqlalchemy import Connection, event, exc
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPIModule, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, PoolResetState

from app.core.config.settings import Settings
from app.core.db.driver.errors import is_unusable_after
from app.core.db.driver.pool import FairPool

OWNER_LOCK_TIMEOUT_SECONDS = 60
# Execution option of engines whose connections begin no transaction: each statement commits by itself.
AUTOCOMMIT = "is_autocommit"
# psycopg's `TransactionStatus` of a connection without a transaction.
IDLE = 0
BEGIN = {
    "postgresql": "BEGIN",
    # Takes the write lock at once: two transactions that read first and write later would deadlock.
    "sqlite": "BEGIN IMMEDIATE",
}
# The service relies on these values, which PostgreSQL reports for each connection.
SESSION_SETTINGS = {
    "client_encoding": "UTF8",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "standard_conforming_strings": "on",
}
WRONG_ENCODING = (
    "The database has the encoding {encoding}, but the service needs UTF8. Create another database with CREATE DATABASE"
    " name ENCODING 'UTF8' TEMPLATE template0, and copy the data into it with `db backup` and `db restore`."
)


def create_pooled_engine(settings: Settings, pool_size: int) -> AsyncEngine:
    is_pooled = settings.pooled_url != settings.url
    engine = create_async_engine(
        settings.pooled_url,
        connect_args=_connect_arguments(settings, settings.database_statement_timeout_seconds, is_pooled=is_pooled),
        hide_parameters=True,
        poolclass=FairPool if settings.database_direct_statements else AsyncAdaptedQueuePool,
        pool_reset_on_return=None,
        pool_size=pool_size,
        # No overflow: SQLAlchemy closes an overflow connection when it is returned, so each use would open one.
        max_overflow=0,
        pool_timeout=settings.database_pool_timeout_seconds,
        pool_recycle=settings.database_pool_recycle_seconds,
    )
    # `_on_checkout` needs `select.poll`, which Windows lacks.
    if engine.dialect.name == "postgresql" and hasattr(select, "poll"):
        event.listen(engine.sync_engine, "checkout", _on_checkout)
    return prepare_engine(engine)


def create_owner_engine(settings: Settings) -> AsyncEngine:
    """Return an engine for migrations: it connects as the owner, without pool, pooler and statement timeout."""
    arguments = _connect_arguments(settings, timeout_seconds=None)
    return prepare_engine(create_async_engine(settings.owner_url, connect_args=arguments, poolclass=NullPool))


def prepare_engine(engine: AsyncEngine) -> AsyncEngine:
    """Let the engine begin transactions explicitly, and set the pragmas and settings of each new connection."""
    event.listen(engine.sync_engine, "begin", _on_begin)
    event.listen(engine.sync_engine, "reset", _on_reset)
    event.listen(engine.sync_engine, "handle_error", _on_error)
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _on_sqlite_connect)
    else:
        event.listen(engine.sync_engine, "connect", partial(_on_postgresql_connect, engine.dialect.loaded_dbapi))
    return engine


def _connect_arguments(settings: Settings, timeout_seconds: float | None, *, is_pooled: bool = False) -> dict[str, Any]:
    if settings.url.get_backend_name() == "sqlite":
        return {"timeout": OWNER_LOCK_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds}
    timeout_ms = round((timeout_seconds or 0) * 1000)
    arguments: dict[str, Any] = {
        "autocommit": True,
        "connect_timeout": settings.database_connect_timeout_seconds,
        # Detect a server that vanished: the kernel's defaults are 15 minutes for unacknowledged data and 2 hours for an
        # idle connection.
        "tcp_user_timeout": timeout_ms + 5000 if timeout_ms else 0,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        # Overrides PGCLIENTENCODING, and a client_encoding in DATABASE_URL.
        "client_encoding": "UTF8",
    }
    # Set even if empty: otherwise libpq sends PGOPTIONS, which poolers refuse.
    options = settings.url.query.get("options", "")
    if is_pooled:
        # Prepare no statements, and add no options: the pooler may run the next statement on another of its connections
        # to the server, where both would be missing.
        return {**arguments, "prepare_threshold": None, "options": options}
    own = f"-c statement_timeout={timeout_ms} -c idle_in_transaction_session_timeout=60000 -c timezone=UTC"
    # The service relies on its own options: they follow those of DATABASE_URL, because the last value of each counts.
    return {**arguments, "options": f"{options} {own}".strip()}


def _on_sqlite_connect(connection: DBAPIConnection, _record: object) -> None:
    # Autocommit mode: otherwise the driver would begin transactions late and without the write lock.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode")
    # The mode is stored in the file; setting it again would need exclusive access.
    if cursor.fetchone() != ("wal",):
        cursor.execute("PRAGMA journal_mode = WAL")
    # In WAL mode, a crash of the process loses nothing; a power failure may lose the last commits but corrupts nothing.
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _on_postgresql_connect(driver: DBAPIModule, connection: DBAPIConnection, _record: object) -> None:
    """Raise the driver's OperationalError if the database is not in UTF-8; set the formats of values.

    The formats may differ from SESSION_SETTINGS, because PGTZ and PGDATESTYLE override the options of a connection, and
    a role or a database may have its own settings. The server has reported its values at the start of the connection,
    so reading them costs no round trip.
    """
    reported = connection.driver_connection.info.parameter_status
    encoding = reported("server_encoding")
    # Some poolers do not report server_encoding.
    if encoding not in {None, "UTF8"}:
        connection.close()
        raise driver.OperationalError(WRONG_ENCODING.format(encoding=encoding))
    for name, value in SESSION_SETTINGS.items():
        # The second part of DateStyle only affects input that is not ISO, which the service never sends.
        if (reported(name) or "").partition(",")[0] != value:
            cursor = connection.cursor()
            cursor.execute(f"SET {name} = '{value}'")
            cursor.close()


def _on_begin(connection: Connection) -> None:
    # The drivers are in autocommit mode, so BEGIN must be sent here. In its default mode, each driver would send BEGIN
    # late, and sqlite3 would not take the write lock.
    if AUTOCOMMIT not in connection.get_execution_options():
        connection.exec_driver_sql(BEGIN[connection.dialect.name])


def _on_checkout(connection: DBAPIConnection, _record: object, _proxy: object) -> None:
    """Replace a connection that the server has closed, for instance during a restart.

    An idle connection is readable only if the server has closed it. Polling the socket costs microseconds, a query
    would cost a round trip.
    """
    poll = select.poll()
    poll.register(connection.driver_connection.pgconn.socket, select.POLLIN)
    if poll.poll(0):
        raise exc.DisconnectionError("The server has closed the connection.")


def _on_error(context: ExceptionContext) -> None:
    if is_unusable_after(context.original_exception):
        context.is_disconnect = True


def _on_reset(connection: DBAPIConnection, _record: object, state: PoolResetState) -> None:
    """Roll back an open transaction; asking the driver is cheaper than an unneeded rollback."""
    if state.asyncio_safe and not state.transaction_was_reset and _is_in_transaction(connection.driver_connection):
        connection.rollback()


def _is_in_transaction(driver: Any) -> bool:  # noqa: ANN401  # psycopg and aiosqlite share no base class
    if hasattr(driver, "in_transaction"):
        return bool(driver.in_transaction)
    return bool(driver.info.transaction_status != IDLE)
