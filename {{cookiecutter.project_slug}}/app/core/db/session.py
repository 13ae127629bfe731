import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.pool import QueuePool

from app.core.config.settings import Settings
from app.core.db.driver.run import replace_pooled_connections, run_directly
from app.core.db.engine import AUTOCOMMIT, create_pooled_engine
from app.core.db.query import Command, Query, RecordT, Statement, ValueT
from app.core.errors import AppError
from app.core.observability.metrics import POOL_IN_USE, POOL_SIZE, POOL_WAITING

WATCH_SECONDS = 1
CHANGED_ROWS = text("SELECT changes()")
# Without this option, SQLAlchemy does not count the rows of an `insert`.
COUNT_ROWS = {"preserve_rowcount": True}
CLOSED = "This session is closed. For work after the request, take DatabaseDep and open another session."


class Session(AsyncSession):
    """SQLAlchemy's session, with methods that run typed statements (app/core/db/query.py) directly on the driver.

    Typed statements share the transaction of SQLAlchemy's own methods, and entities are flushed before a typed
    statement runs. A closed session cannot be used again: `DatabaseDep` opens sessions for work that outlives the
    request, such as a streamed response or a background task.
    """

    def __init__(
        self, bind: AsyncEngine | AsyncConnection, info: dict[str, Any], *, runs_directly: bool = True
    ) -> None:
        """Open a session; unless `runs_directly` (DATABASE_DIRECT_STATEMENTS), SQLAlchemy executes typed statements."""
        super().__init__(
            bind,
            expire_on_commit=False,
            # Otherwise a closed session would open another connection on its next use, which nothing would close.
            close_resets_only=False,
            info=info,
            # For tests: they pass a connection, and roll its transaction back at the end. So `commit` must end only a
            # savepoint.
            join_transaction_mode="create_savepoint",
        )
        # Whether each statement commits by itself and needs no transaction of the session.
        self._is_autocommit = isinstance(bind, AsyncEngine) and AUTOCOMMIT in bind.get_execution_options()
        self._dialect = bind.dialect
        self._runs_directly = runs_directly
        self._is_closed = False

    async def fetch_all(self, query: Query[RecordT], /, **parameters: object) -> list[RecordT]:
        return [query.make(row) for row in (await self._run(query, parameters))[0]]

    async def fetch_one(self, query: Query[RecordT], /, **parameters: object) -> RecordT:
        """Return the only row; raise NoResultFound or MultipleResultsFound unless there is exactly one."""
        row = await self.fetch_one_or_none(query, **parameters)
        if row is None:
            raise exc.NoResultFound("No row was found when one was required.")
        return row

    async def fetch_one_or_none(self, query: Query[RecordT], /, **parameters: object) -> RecordT | None:
        """Return the only row, or None if there is none; raise MultipleResultsFound for more than one."""
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
        return (await self._run(command, parameters))[1]

    async def close(self) -> None:
        self._is_closed = True
        await super().close()

    def end(self) -> None:
        """Close a session that holds no connection; `await` is only needed to release a connection."""
        self._is_closed = True
        self.sync_session.close()

    async def _run(self, statement: Statement, parameters: Mapping[str, object]) -> tuple[list[Any], int]:
        """Return the rows, and how many rows a command has changed."""
        if self._is_closed:
            raise exc.InvalidRequestError(CLOSED)
        # Flush as SQLAlchemy's own methods do: the statement then sees entities that were added, changed or deleted.
        is_in_transaction = self.in_transaction()
        if is_in_transaction and self.autoflush and (self.new or self.dirty or self.deleted):
            await self.flush()
        if self._runs_directly:
            # Use the connection that the session has: if all sessions waited for a second one, none would get it.
            is_own = is_in_transaction or not self._is_autocommit
            result = await run_directly(self, statement.statement, parameters, on_own_connection=is_own)
            if result is not None:
                return result
        return await self._run_by_sqlalchemy(statement, parameters)

    async def _run_by_sqlalchemy(self, statement: Statement, parameters: Mapping[str, object]) -> tuple[list[Any], int]:
        statement.check_names(frozenset(parameters), self._dialect)
        # `self.execute` would treat an insert or update as a bulk operation on entities.
        connection = await self.connection()
        result = await connection.execute(statement.statement, parameters, execution_options=COUNT_ROWS)
        if isinstance(statement, Query):
            return list(result), -1
        if result.rowcount >= 0:
            return [], result.rowcount
        # sqlite3 does not count the rows of a statement that begins with a CTE.
        return [], (await connection.execute(CHANGED_ROWS)).scalar_one()

    async def discard_connection(self) -> None:
        """Close the session's connection, and replace the other connections of its pool before they are used again."""
        connection = await self.connection()
        replace_pooled_connections(connection)
        await connection.invalidate()


class Database:
    """Opens sessions: `read` without a transaction, `write` with one."""

    def __init__(
        self,
        reading: AsyncEngine | AsyncConnection,
        writing: AsyncEngine | AsyncConnection,
        *,
        runs_directly: bool = True,
    ) -> None:
        self._reading = _autocommit(reading)
        self._writing = writing
        self._runs_directly = runs_directly
        # Data of this process, which every session offers as `session.info`; features add their own keys.
        self.info: dict[str, Any] = {}

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Session]:
        """Open a session whose statements need no transaction: no BEGIN, no COMMIT, and on SQLite no write lock."""
        session = Session(self._reading, self.info, runs_directly=self._runs_directly)
        try:
            yield session
        finally:
            # SQLAlchemy keeps the connection with which it has executed a statement; direct statements release theirs.
            if session.in_transaction():
                await session.close()
            else:
                session.end()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Session]:
        """Open a session and commit at its end; roll back after an error, except an AppError with `commit_anyway`."""
        async with Session(self._writing, self.info, runs_directly=self._runs_directly) as session:
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
    # SQLite has one writer at a time: the writers of this process wait in order for one connection. A race for the lock
    # would starve some of them.
    writers = 1 if is_sqlite and settings.database_pool_size > 1 else 0
    engine = create_pooled_engine(settings, settings.database_pool_size - writers)
    writing = create_pooled_engine(settings, writers) if writers else engine
    engines = {engine, writing}
    watching = asyncio.create_task(_watch([each.pool for each in engines if isinstance(each.pool, QueuePool)]))
    try:
        yield Database(engine, writing, runs_directly=settings.database_direct_statements)
    finally:
        watching.cancel()
        for each in engines:
            await each.dispose()


async def _watch(pools: Sequence[QueuePool]) -> None:
    """Set the metrics once a second: counting each use would cost more than taking a connection."""
    while True:
        POOL_IN_USE.set(sum(pool.checkedout() for pool in pools))
        # SQLAlchemy's own pool does not know how many tasks wait.
        POOL_WAITING.set(sum(getattr(pool, "waiting", 0) for pool in pools))
        await asyncio.sleep(WATCH_SECONDS)


async def commit_and_release(session: AsyncSession) -> None:
    """Commit, so that the connection returns to the pool.

    Call this function before slow work outside of the database, such as hashing.
    """
    await session.commit()
