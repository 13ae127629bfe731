import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import Connection, CursorResult, Delete, event, exc
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry, NullPool
from sqlalchemy.util import await_only

from app.core.config import Settings
from app.core.exceptions import AppError
from app.core.metrics import POOL_IN_USE, POOL_SIZE, POOL_WAITING

# RFC 9110 §9.2.1: they change nothing.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PATIENCE_SECONDS = 60


class FairPool(AsyncAdaptedQueuePool):
    """Serve those who wait for a connection in the order they came, and none longer than the pool's timeout.

    SQLAlchemy's own queue lets a newcomer overtake a task that was just woken, which starves some of them under load.
    """

    @cached_property
    def _gate(self) -> asyncio.Semaphore:
        return asyncio.Semaphore(self.size())

    def _do_get(self) -> ConnectionPoolEntry:
        await_only(self._enter())
        try:
            return super()._do_get()
        except BaseException:
            self._leave()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        try:
            super()._do_return_conn(record)
        finally:
            self._leave()

    async def _enter(self) -> None:
        with POOL_WAITING.track_inprogress():
            try:
                async with asyncio.timeout(self.timeout()):
                    await self._gate.acquire()
            except TimeoutError:
                raise exc.TimeoutError(f"no connection was free within {self.timeout():g} s") from None
        POOL_IN_USE.inc()

    def _leave(self) -> None:
        POOL_IN_USE.dec()
        self._gate.release()


class Database:
    """The sessions for reading and for writing."""

    def __init__(self, reading: AsyncEngine | AsyncConnection, writing: AsyncEngine | AsyncConnection) -> None:
        # The last option matters to tests alone, which hand in a connection with a transaction that they roll back.
        options: Any = {"expire_on_commit": False, "join_transaction_mode": "create_savepoint"}
        # What each session carries along, as `session.info`.
        self.info: dict[str, Any] = options.setdefault("info", {})
        self._reading = async_sessionmaker(reading, **options)
        self._writing = async_sessionmaker(writing, **options)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Run each statement by itself: no BEGIN, no COMMIT, and on SQLite no lock."""
        async with self._reading() as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Commit at the end; roll back when an error is raised, unless it says to keep the changes."""
        async with self._writing() as session:
            try:
                yield session
            except AppError as error:
                if error.keeps_changes:
                    await session.commit()
                raise
            await session.commit()


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    POOL_SIZE.set(settings.database_pool_size)
    is_sqlite = settings.url.get_backend_name() == "sqlite"
    # SQLite has one writer at a time: those of this process queue for one of the connections, in the order they came,
    # and do not race for the lock, which would starve some of them.
    writers = 1 if is_sqlite and settings.database_pool_size > 1 else 0
    engine = _create_engine(settings, settings.database_pool_size - writers)
    writing = _create_engine(settings, writers) if writers else engine
    if is_sqlite:
        reading = engine.execution_options(sqlite_begin=None)
    else:
        reading = engine.execution_options(isolation_level="AUTOCOMMIT")
    try:
        yield Database(reading=reading, writing=writing)
    finally:
        for each in {engine, writing}:
            await each.dispose()


def _create_engine(settings: Settings, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        settings.url,
        connect_args=_connect_arguments(settings, settings.database_statement_timeout_seconds),
        hide_parameters=True,
        poolclass=FairPool,
        pool_size=pool_size,
        # Overflow connections would be closed at each return.
        max_overflow=0,
        pool_timeout=settings.database_pool_timeout_seconds,
        pool_recycle=settings.database_pool_recycle_seconds,
    )
    return prepare_engine(engine)


def create_patient_engine(settings: Settings) -> AsyncEngine:
    """Without a pool, and with time for locks and long statements, as migrations need it."""
    arguments = _connect_arguments(settings, timeout_seconds=None)
    return prepare_engine(create_async_engine(settings.url, connect_args=arguments, poolclass=NullPool))


def prepare_engine(engine: AsyncEngine) -> AsyncEngine:
    """Make SQLite behave like a database."""
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _on_sqlite_connect)
        event.listen(engine.sync_engine, "begin", _on_sqlite_begin)
    return engine


def _connect_arguments(settings: Settings, timeout_seconds: float | None) -> dict[str, Any]:
    if settings.url.get_backend_name() == "sqlite":
        return {"timeout": PATIENCE_SECONDS if timeout_seconds is None else timeout_seconds}
    timeout_ms = round((timeout_seconds or 0) * 1000)
    return {
        "connect_timeout": settings.database_connect_timeout_seconds,
        # A server that vanished without a word: give up on it, and not after the kernel's quarter of an hour.
        "tcp_user_timeout": timeout_ms + 5000 if timeout_ms else 0,
        "options": f"-c statement_timeout={timeout_ms} -c idle_in_transaction_session_timeout=60000 -c timezone=UTC",
    }


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


def _on_sqlite_begin(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once: two transactions that read first and write later would deadlock.
    if begin := connection.get_execution_options().get("sqlite_begin", "BEGIN IMMEDIATE"):
        connection.exec_driver_sql(begin)


async def release_connection(session: AsyncSession) -> None:
    """Give the connection back before slow work outside the database, such as hashing; what was written is kept."""
    await session.commit()


async def count_deleted(session: AsyncSession, statement: Delete, parameters: dict[str, Any]) -> int:
    result = await session.execute(statement, parameters)
    assert isinstance(result, CursorResult)  # noqa: S101  # for the type checker
    return result.rowcount


async def get_session(request: Request) -> AsyncIterator[AsyncSession]:
    database: Database = request.state.database
    unit_of_work = database.read if request.method in SAFE_METHODS else database.write
    async with unit_of_work() as session:
        yield session


# "function": commit before the response is sent, so that a failed commit is an error and not a false success.
SessionDep = Annotated[AsyncSession, Depends(get_session, scope="function")]
