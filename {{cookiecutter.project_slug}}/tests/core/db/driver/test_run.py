"""Statements that app/core/db/driver runs: shared connections, repeated reads, and a cache of compiled statements."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Dialect, Executable, insert, literal, select, text
from sqlalchemy.exc import OperationalError

from app.accounts.models import User
from app.core.db.driver.statement import CompiledStatement, StatementResult
from app.core.db.query import Query
from app.core.db.session import Database, Session, open_database
from tests.support.databases import make_settings

ONE = Query(select(literal(1)))
ADD_USER = Query(insert(User).returning(User.id))


@pytest.fixture
async def live_database(live_url: str) -> AsyncIterator[Database]:
    async with open_database(make_settings(live_url, database_pool_size=2)) as database:
        yield database


async def test_reader_holds_no_connection_between_two_statements(live_url: str) -> None:
    settings = make_settings(live_url, database_pool_size=1, database_pool_timeout_seconds=0.5)
    async with open_database(settings) as database, database.read() as session, database.read() as another:
        assert await session.fetch_value(ONE) == 1
        assert await another.fetch_value(ONE) == 1
        # SQLAlchemy's own methods hold a connection until the session is closed.
        assert await session.scalar(text("SELECT 1")) == 1
        await session.close()
        assert await another.fetch_value(ONE) == 1


async def test_connections_as_old_as_a_discarded_one_are_not_used_again(live_url: str) -> None:
    async def find_drivers(database: Database) -> set[object]:
        async with database.read() as one, database.read() as other:
            raw = [await (await each.connection()).get_raw_connection() for each in (one, other)]
            return {each.driver_connection for each in raw}

    # On SQLite, one connection of the pool is only for writing.
    async with open_database(make_settings(live_url, database_pool_size=3)) as database:
        before = await find_drivers(database)
        async with database.read() as session:
            await session.discard_connection()
        after = await find_drivers(database)

    assert len(before) == len(after) == 2
    assert before & after == set()


async def test_cancelled_statement_gives_its_connection_back(live_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    execute, reached = CompiledStatement._execute, asyncio.Event()

    async def never_answer(
        self: CompiledStatement, driver: object, dialect: Dialect, values: dict[str, Any]
    ) -> StatementResult:
        await execute(self, driver, dialect, values)
        reached.set()
        return await asyncio.Future()

    async def ask(database: Database) -> None:
        async with database.read() as session:
            await session.fetch_value(ONE)

    async with open_database(make_settings(live_url, database_pool_size=1)) as database:
        with monkeypatch.context() as patch:
            patch.setattr(CompiledStatement, "_execute", never_answer)
            task = asyncio.create_task(ask(database))
            await reached.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        async with database.read() as session:
            assert await session.fetch_value(ONE) == 1


def lose_answers(monkeypatch: pytest.MonkeyPatch, session: Session, count: int) -> list[str]:
    """Let the next `count` statements run, and lose their answers; return all statements that have run."""
    execute, ran = CompiledStatement._execute, list[str]()

    async def lose(
        self: CompiledStatement, driver: object, dialect: Dialect, values: dict[str, Any]
    ) -> StatementResult:
        answer = await execute(self, driver, dialect, values)
        ran.append(self._sql)
        if len(ran) <= count:
            raise dialect.loaded_dbapi.OperationalError("gone")
        return answer

    monkeypatch.setattr(type(session.get_bind().dialect), "is_disconnect", lambda *_: True)
    monkeypatch.setattr(CompiledStatement, "_execute", lose)
    return ran


async def test_read_is_repeated_until_a_connection_is_alive(live_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # On SQLite, one connection of the pool is only for writing.
    async with open_database(make_settings(live_url, database_pool_size=3)) as database, database.read() as session:
        ran = lose_answers(monkeypatch, session, 2)

        assert await session.fetch_value(ONE) == 1
    assert len(ran) == 3


async def test_write_that_may_have_committed_is_not_repeated(
    live_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live_database.read() as session:
        ran = lose_answers(monkeypatch, session, 1)
        with pytest.raises(OperationalError):
            await session.fetch_one(ADD_USER, email="ada@example.com", password_hash="")

    assert len(ran) == 1


async def test_statement_is_compiled_once(live_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Executable] = []
    compile_statement = CompiledStatement.__init__

    def note(self: CompiledStatement, statement: Executable, *arguments: Any) -> None:  # noqa: ANN401  # passed on to the replaced method, which declares them
        compiled.append(statement)
        compile_statement(self, statement, *arguments)

    monkeypatch.setattr(CompiledStatement, "__init__", note)
    query = Query(select(literal(1)))
    for _ in range(3):
        async with live_database.read() as session:
            await session.fetch_value(query)

    assert compiled == [query.statement]
