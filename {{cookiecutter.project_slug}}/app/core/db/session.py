import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import CursorResult, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.pool import Pool

from app.core.config.settings import Settings
from app.core.db.driver.autocommit import _pool_of, _run_in_autocommit
from app.core.db.driver.pool import FairPool
from app.core.db.driver.statement import Answer, CompiledStatement
from app.core.db.engine import AUTOCOMMIT, _create_engine
from app.core.db.query import Command, Query, RecordT, Statement, ValueT
from app.core.errors import AppError
from app.core.observability.metrics import POOL_IN_USE, POOL_SIZE, POOL_WAITING

WATCH_SECONDS = 1
CLOSED = "This session is closed: take DatabaseDep, and open a session for what runs after the request."


class Session(AsyncSession):
    """SQLAlchemy's session, with verbs that run typed statements (app/core/db/query.py) directly on the driver.

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
                if error.commit_anyway:
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


async def release_connection(session: AsyncSession) -> None:
    """Give the connection back before slow work outside the database, such as hashing; what was written is kept."""
    await session.commit()
