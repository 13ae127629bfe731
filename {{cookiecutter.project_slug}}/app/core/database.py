import asyncio
import select
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import Connection, CursorResult, event, exc
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPIModule, ExceptionContext
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool, Pool, PoolResetState
from sqlalchemy.util import greenlet_spawn

from app.core.config import Settings
from app.core.driver import Answer, CompiledStatement, is_unusable_after, wrap_error
from app.core.exceptions import AppError
from app.core.metrics import POOL_IN_USE, POOL_SIZE, POOL_WAITING
from app.core.pool import FairPool
from app.core.query import Command, Query, RecordT, Statement, ValueT

# RFC 9110 §9.2.1: they change nothing.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PATIENCE_SECONDS = 60
WATCH_SECONDS = 1
# An option of engines whose connections begin no transaction: each statement commits by itself.
AUTOCOMMIT = "is_autocommit"
CLOSED = "This session is closed: take DatabaseDep, and open a session for what runs after the request."
# What psycopg, and libpq below it, call a connection without a transaction.
IDLE = 0
BEGIN = {
    "postgresql": "BEGIN",
    # It takes the write lock at once: two transactions that read first and write later would deadlock.
    "sqlite": "BEGIN IMMEDIATE",
}

# Values that PostgreSQL reports for each connection, and that the service relies on.
SESSION_SETTINGS = {
    "client_encoding": "UTF8",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "standard_conforming_strings": "on",
}
WRONG_ENCODING = (
    "The database is in {encoding}, and the service needs UTF8: make one with CREATE DATABASE name ENCODING 'UTF8'"
    " TEMPLATE template0, and copy the data into it with `db backup` and `db restore`."
)


class Session(AsyncSession):
    """SQLAlchemy's session, with verbs that run typed statements (app/core/query.py) directly on the driver.

    Both ways share one transaction. A closed session cannot be used again: `DatabaseDep` opens sessions for work that
    outlives the request's, such as a streamed answer or a background task.
    """

    def __init__(self, bind: AsyncEngine | AsyncConnection, info: dict[str, Any]) -> None:
        super().__init__(
            bind,
            expire_on_commit=False,
            # Otherwise it would open another connection, which nobody closes, when it is used after its end.
            close_resets_only=False,
            info=info,
            # For tests alone, which give a connection with a transaction that they roll back.
            join_transaction_mode="create_savepoint",
        )
        # Each statement commits by itself: it needs a connection, and no transaction of the session's.
        self._autocommit: AsyncEngine | None = None
        if isinstance(bind, AsyncEngine) and AUTOCOMMIT in bind.get_execution_options():
            self._autocommit = bind
        self._dialect = bind.dialect
        self._is_closed = False

    async def fetch_all(self, query: Query[RecordT], /, **parameters: object) -> list[RecordT]:
        return [query.make(row) for row in (await self._run(query, parameters)).rows]

    async def fetch_one(self, query: Query[RecordT], /, **parameters: object) -> RecordT:
        """Raise NoResultFound or MultipleResultsFound unless there is exactly one row."""
        row = await self.fetch_one_or_none(query, **parameters)
        if row is None:
            raise exc.NoResultFound("No row was found when one was required.")
        return row

    async def fetch_one_or_none(self, query: Query[RecordT], /, **parameters: object) -> RecordT | None:
        """Raise MultipleResultsFound for more than one row."""
        rows = await self.fetch_all(query, **parameters)
        if len(rows) > 1:
            raise exc.MultipleResultsFound("Several rows were found when one or none was required.")
        return rows[0] if rows else None

    async def fetch_value(self, query: Query[tuple[ValueT]], /, **parameters: object) -> ValueT | None:
        """Return the value of the first row, or None where there is no row."""
        rows = await self.fetch_all(query, **parameters)
        return rows[0][0] if rows else None

    async def run(self, command: Command, /, **parameters: object) -> int:
        """Return how many rows were changed."""
        return (await self._run(command, parameters)).changed

    async def close(self) -> None:
        self._is_closed = True
        await super().close()

    def end(self) -> None:
        """Close a session that holds no connection, which needs no await."""
        self._is_closed = True
        self.sync_session.close()

    async def _run(self, statement: Statement, parameters: Mapping[str, object]) -> Answer:
        if self._is_closed:
            raise exc.InvalidRequestError(CLOSED)
        compiled = statement.compile(self._dialect, frozenset(parameters))
        if compiled.takes_lists:
            return await self._run_by_sqlalchemy(statement, parameters)
        # SQLAlchemy's own verbs have taken a connection: a second one might never become free.
        if self._autocommit is None or self.in_transaction():
            return await self._run_on_own_connection(compiled, parameters)
        return await _run_in_autocommit(self._autocommit, compiled, parameters, repeat=statement.is_repeatable)

    async def _run_by_sqlalchemy(self, statement: Statement, parameters: Mapping[str, object]) -> Answer:
        result = await self.execute(statement.statement, parameters)
        if isinstance(statement, Query):
            return Answer(list(result), -1)
        assert isinstance(result, CursorResult)  # noqa: S101  # a statement without rows: for the type checker
        return Answer([], result.rowcount)

    async def _run_on_own_connection(self, compiled: CompiledStatement, parameters: Mapping[str, object]) -> Answer:
        connection = await self.connection()
        assert connection.sync_connection is not None  # noqa: S101  # for the type checker
        try:
            return await compiled.run(connection.sync_connection.connection, self._dialect, parameters)
        except exc.DBAPIError as error:
            if error.connection_invalidated:
                await self.discard_connection(error)
            raise

    async def discard_connection(self, error: BaseException | None = None) -> None:
        """Close the session's connection, and use no other one of the pool that is as old."""
        connection = await self.connection()
        if isinstance(self.bind, AsyncEngine):
            _pool_of(self.bind).replace_all()
        await connection.invalidate(error)


async def _run_in_autocommit(
    engine: AsyncEngine, compiled: CompiledStatement, parameters: Mapping[str, object], *, repeat: bool
) -> Answer:
    """Run a statement that commits by itself; repeat a read on another connection where this one was lost.

    More than once: a server that was restarted has lost all of the pool's connections. A write is never repeated, as it
    may have committed before its answer was lost.
    """
    for _ in range(_pool_of(engine).size() if repeat else 0):
        try:
            return await _run_on_lent_connection(engine, compiled, parameters)
        except exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
    return await _run_on_lent_connection(engine, compiled, parameters)


def _pool_of(engine: AsyncEngine) -> FairPool:
    assert isinstance(engine.pool, FairPool)  # noqa: S101  # for the type checker
    return engine.pool


async def _run_on_lent_connection(
    engine: AsyncEngine, compiled: CompiledStatement, parameters: Mapping[str, object]
) -> Answer:
    pool = _pool_of(engine)
    try:
        lent = await pool.lend(engine)
    except engine.dialect.loaded_dbapi.Error as error:
        raise wrap_error(error, engine.dialect) from error
    try:
        answer = await compiled.run(lent.connection, engine.dialect, parameters)
    except BaseException as error:
        if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
            await greenlet_spawn(pool.lose, lent, error)
        await greenlet_spawn(lent.connection.close)
        raise
    pool.give_back(lent)
    return answer


class Database:
    """Opens sessions: `read` without a transaction, `write` with one."""

    def __init__(self, reading: AsyncEngine | AsyncConnection, writing: AsyncEngine | AsyncConnection) -> None:
        self._reading = _autocommit(reading)
        self._writing = writing
        # What each session carries along, as `session.info`.
        self.info: dict[str, Any] = {}

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Session]:
        """Run each statement by itself: no BEGIN, no COMMIT, and on SQLite no lock."""
        session = Session(self._reading, self.info)
        try:
            yield session
        finally:
            # Typed statements have given their connections back; SQLAlchemy's own verbs hold one.
            if session.in_transaction():
                await session.close()
            else:
                session.end()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Session]:
        """Commit at the end; roll back when an error is raised, unless it says to keep the changes."""
        async with Session(self._writing, self.info) as session:
            try:
                yield session
            except AppError as error:
                if error.keeps_changes:
                    await session.commit()
                raise
            await session.commit()


def _autocommit(bind: AsyncEngine | AsyncConnection) -> AsyncEngine | AsyncConnection:
    return bind.execution_options(**{AUTOCOMMIT: True}) if isinstance(bind, AsyncEngine) else bind


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    POOL_SIZE.set(settings.database_pool_size)
    is_sqlite = settings.url.get_backend_name() == "sqlite"
    # SQLite has one writer at a time: those of this process queue for one of the connections, in the order they came,
    # and do not race for the lock, which would starve some of them.
    writers = 1 if is_sqlite and settings.database_pool_size > 1 else 0
    engine = _create_engine(settings, settings.database_pool_size - writers)
    writing = _create_engine(settings, writers) if writers else engine
    engines = {engine, writing}
    watching = asyncio.create_task(_watch([each.pool for each in engines]))
    try:
        yield Database(reading=engine, writing=writing)
    finally:
        watching.cancel()
        for each in engines:
            await each.dispose()


async def _watch(pools: Sequence[Pool]) -> None:
    """Tell the metrics now and then: to count at each use would cost more than to take a connection."""
    while True:
        POOL_IN_USE.set(sum(pool.in_use for pool in pools if isinstance(pool, FairPool)))
        POOL_WAITING.set(sum(pool.waiting for pool in pools if isinstance(pool, FairPool)))
        await asyncio.sleep(WATCH_SECONDS)


def _create_engine(settings: Settings, pool_size: int) -> AsyncEngine:
    is_pooled = settings.pooled_url != settings.url
    engine = create_async_engine(
        settings.pooled_url,
        connect_args=_connect_arguments(settings, settings.database_statement_timeout_seconds, is_pooled=is_pooled),
        hide_parameters=True,
        poolclass=FairPool,
        pool_reset_on_return=None,
        pool_size=pool_size,
        # Overflow connections would be closed at each return.
        max_overflow=0,
        pool_timeout=settings.database_pool_timeout_seconds,
        pool_recycle=settings.database_pool_recycle_seconds,
    )
    # Windows has no poll.
    if engine.dialect.name == "postgresql" and hasattr(select, "poll"):
        event.listen(engine.sync_engine, "checkout", _on_checkout)
    return prepare_engine(engine)


def create_patient_engine(settings: Settings) -> AsyncEngine:
    """As the owner, without a pool or a pooler, with time for locks and long statements: migrations need all of it."""
    arguments = _connect_arguments(settings, timeout_seconds=None)
    return prepare_engine(create_async_engine(settings.owner_url, connect_args=arguments, poolclass=NullPool))


def prepare_engine(engine: AsyncEngine) -> AsyncEngine:
    """Begin transactions here and not in the drivers, and make SQLite behave like a database."""
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
        return {"timeout": PATIENCE_SECONDS if timeout_seconds is None else timeout_seconds}
    timeout_ms = round((timeout_seconds or 0) * 1000)
    arguments: dict[str, Any] = {
        "autocommit": True,
        "connect_timeout": settings.database_connect_timeout_seconds,
        # A server that vanished without a word: give up on it, and not after the kernel's quarter of an hour, or its
        # two hours where an answer is owed.
        "tcp_user_timeout": timeout_ms + 5000 if timeout_ms else 0,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        # Overrides PGCLIENTENCODING and DATABASE_URL.
        "client_encoding": "UTF8",
    }
    # Set even if empty: otherwise libpq sends PGOPTIONS, which a pooler refuses.
    options = settings.url.query.get("options", "")
    if is_pooled:
        # The next statement may find another connection of the server's, which knows nothing of what this one was told.
        return {**arguments, "prepare_threshold": None, "options": options}
    own = f"-c statement_timeout={timeout_ms} -c idle_in_transaction_session_timeout=60000 -c timezone=UTC"
    # Those of DATABASE_URL come first: these are what the service relies on.
    return {**arguments, "options": f"{options} {own}".strip()}


def _on_sqlite_connect(connection: DBAPIConnection, _record: object) -> None:
    # The driver must not begin transactions by itself: it would begin them late and without the lock.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode")
    # It stays in the file; to set it again would need a moment without any other connection.
    if cursor.fetchone() != ("wal",):
        cursor.execute("PRAGMA journal_mode = WAL")
    # In WAL mode safe against a crash of the process; a power cut may lose the last commits and corrupts nothing.
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _on_postgresql_connect(driver: DBAPIModule, connection: DBAPIConnection, _record: object) -> None:
    """Raise the driver's OperationalError where the database is not in UTF-8; set how values are read and written.

    PGTZ and PGDATESTYLE win over the options of a connection, and a role or a database may have other settings.
    The server has reported its values: reading them costs no round trip.
    """
    told = connection.driver_connection.info.parameter_status
    encoding = told("server_encoding")
    # Some poolers do not report server_encoding.
    if encoding not in {None, "UTF8"}:
        connection.close()
        raise driver.OperationalError(WRONG_ENCODING.format(encoding=encoding))
    for name, value in SESSION_SETTINGS.items():
        # The second part of DateStyle only affects input that is not ISO, which the service never sends.
        if (told(name) or "").partition(",")[0] != value:
            cursor = connection.cursor()
            cursor.execute(f"SET {name} = '{value}'")
            cursor.close()


def _on_begin(connection: Connection) -> None:
    # The drivers are in autocommit: they would begin late, SQLite's without the lock, and for reading it is not needed.
    if AUTOCOMMIT not in connection.get_execution_options():
        connection.exec_driver_sql(BEGIN[connection.dialect.name])


def _on_checkout(connection: DBAPIConnection, _record: object, _proxy: object) -> None:
    """Replace a connection that the server has closed, for instance in a restart.

    The server sends hardly anything unasked but its farewell: to look at the socket costs microseconds, a query a round
    trip.
    """
    poll = select.poll()
    poll.register(connection.driver_connection.pgconn.socket, select.POLLIN)
    if poll.poll(0):
        raise exc.DisconnectionError("The server has closed the connection.")


def _on_error(context: ExceptionContext) -> None:
    if is_unusable_after(context.original_exception):
        context.is_disconnect = True


def _on_reset(connection: DBAPIConnection, _record: object, state: PoolResetState) -> None:
    """Roll back what somebody left open; to ask the driver costs less than to roll back nothing."""
    if state.asyncio_safe and not state.transaction_was_reset and _is_in_transaction(connection.driver_connection):
        connection.rollback()


def _is_in_transaction(driver: Any) -> bool:  # noqa: ANN401  # each driver has its own
    if hasattr(driver, "in_transaction"):
        return bool(driver.in_transaction)
    return bool(driver.info.transaction_status != IDLE)


async def commit_and_release(session: AsyncSession) -> None:
    """Commit, and return the connection to the pool before slow work outside of the database, such as hashing."""
    await session.commit()


async def get_session(request: Request) -> AsyncIterator[Session]:
    database: Database = request.state.database
    unit_of_work = database.read if request.method in SAFE_METHODS else database.write
    async with unit_of_work() as session:
        yield session


async def get_database(request: Request) -> Database:
    database: Database = request.state.database
    return database


# "function": commit before the response is sent, so that a failed commit is an error and not a false success.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]
# For work that outlives the request's session, such as a streamed answer or a background task.
DatabaseDep = Annotated[Database, Depends(get_database)]
