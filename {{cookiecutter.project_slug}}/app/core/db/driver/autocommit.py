from collections.abc import Mapping

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import greenlet_spawn

from app.core.db.driver.pool import FairPool
from app.core.db.driver.statement import Answer, CompiledStatement, wrap_error


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
