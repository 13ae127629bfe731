from collections.abc import Mapping

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from app.core.db.driver.pool import FairPool
from app.core.db.driver.statement import CompiledStatement, StatementResult, wrap_error


async def run_in_autocommit(
    engine: AsyncEngine, compiled: CompiledStatement, parameters: Mapping[str, object], *, repeat: bool
) -> StatementResult:
    """Run a statement outside of a transaction; with `repeat`, again on another connection if this one is lost.

    It is repeated as often as the pool has connections, because a restart of the server closes all of them. Do not
    repeat a write: it may have been committed before the connection was lost.
    """
    for _ in range(pool_of(engine).size() if repeat else 0):
        try:
            return await _run_on_shared_connection(engine, compiled, parameters)
        except exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
    return await _run_on_shared_connection(engine, compiled, parameters)


def pool_of(engine: AsyncEngine) -> FairPool:
    assert isinstance(engine.pool, FairPool)  # noqa: S101  # for the type checker
    return engine.pool


async def _run_on_shared_connection(
    engine: AsyncEngine, compiled: CompiledStatement, parameters: Mapping[str, object]
) -> StatementResult:
    pool = pool_of(engine)
    try:
        shared = await pool.acquire_shared(engine)
    except engine.dialect.loaded_dbapi.Error as error:
        raise wrap_error(error, engine.dialect) from error
    try:
        answer = await compiled.run(shared.connection, engine.dialect, parameters)
    except BaseException as error:
        if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
            await greenlet_spawn(pool.discard, shared, error)
        await greenlet_spawn(shared.connection.close)
        raise
    pool.release_shared(shared)
    return answer
