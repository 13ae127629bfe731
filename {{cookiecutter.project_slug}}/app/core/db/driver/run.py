from collections.abc import Mapping
from weakref import WeakKeyDictionary

from sqlalchemy import Dialect, Executable, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.util import greenlet_spawn

from app.core.db.driver.pool import FairPool
from app.core.db.driver.statement import CompiledStatement, StatementResult, wrap_error

# The compiled forms of each statement, one for each kind of database and set of parameter names.
Forms = dict[tuple[str, frozenset[str]], CompiledStatement]
_compiled: WeakKeyDictionary[Executable, Forms] = WeakKeyDictionary()


async def run_directly(
    session: AsyncSession, statement: Executable, parameters: Mapping[str, object], *, on_own_connection: bool
) -> StatementResult | None:
    """Run a statement on the driver's connection; return None for one with a list (`IN`): SQLAlchemy has to execute it.

    With `on_own_connection`, the connection is the session's; otherwise, it is one in autocommit that sessions share.
    Raises ArgumentError for a parameter that the statement does not have.
    """
    bind = session.bind
    assert bind is not None  # noqa: S101  # for the type checker
    dialect = bind.dialect
    compiled = _compile(statement, dialect, frozenset(parameters))
    if compiled.takes_lists:
        return None
    if on_own_connection:
        return await _run_on_own_connection(session, compiled, dialect, parameters)
    assert isinstance(bind, AsyncEngine)  # noqa: S101  # for the type checker
    return await _run_in_autocommit(bind, dialect, compiled, parameters, repeat=statement.is_select)


def replace_pooled_connections(connection: AsyncConnection) -> None:
    """Make this connection's pool replace all connections that are open at this moment, each before its next use."""
    if isinstance(connection.engine.pool, FairPool):
        connection.engine.pool.replace_all()


def _compile(statement: Executable, dialect: Dialect, names: frozenset[str]) -> CompiledStatement:
    forms = _compiled.get(statement)
    if forms is None:
        forms = _compiled[statement] = {}
    key = (dialect.name, names)
    found = forms.get(key)
    if found is None:
        found = forms[key] = CompiledStatement(statement, names, dialect)
    return found


async def _run_on_own_connection(
    session: AsyncSession, compiled: CompiledStatement, dialect: Dialect, parameters: Mapping[str, object]
) -> StatementResult:
    connection = await session.connection()
    assert connection.sync_connection is not None  # noqa: S101  # for the type checker
    try:
        return await compiled.run(connection.sync_connection.connection, dialect, parameters)
    except exc.DBAPIError as error:
        if error.connection_invalidated:
            replace_pooled_connections(connection)
            await connection.invalidate(error)
        raise


async def _run_in_autocommit(
    engine: AsyncEngine,
    dialect: Dialect,
    compiled: CompiledStatement,
    parameters: Mapping[str, object],
    *,
    repeat: bool,
) -> StatementResult:
    """Run a statement outside of a transaction; with `repeat`, run it again on another connection after a disconnect.

    The statement is repeated at most once per connection of the pool: a restart of the server closes all of them.
    Do not repeat a write: it may have been committed before the connection was lost.
    """
    pool = engine.pool
    assert isinstance(pool, FairPool)  # noqa: S101  # for the type checker
    for _ in range(pool.size() if repeat else 0):
        try:
            return await _run_on_shared_connection(engine, dialect, pool, compiled, parameters)
        except exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
    return await _run_on_shared_connection(engine, dialect, pool, compiled, parameters)


async def _run_on_shared_connection(
    engine: AsyncEngine,
    dialect: Dialect,
    pool: FairPool,
    compiled: CompiledStatement,
    parameters: Mapping[str, object],
) -> StatementResult:
    try:
        shared = await pool.acquire_shared(engine)
    except dialect.loaded_dbapi.Error as error:
        raise wrap_error(error, dialect) from error
    try:
        result = await compiled.run(shared.connection, dialect, parameters)
    except BaseException as error:
        if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
            await greenlet_spawn(pool.discard, shared, error)
        await greenlet_spawn(shared.connection.close)
        raise
    pool.release_shared(shared)
    return result
