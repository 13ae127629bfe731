"""What is prepared gives what it would give without; `Session` with an engine for reading runs it by itself."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Executable, Integer, Row, bindparam, insert, literal, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database, Session, open_database
from app.core.models import utc_now
from app.core.statements import PreparedStatement, is_prepared, prepare
from app.todos import service as todos
from app.todos.models import Todo
from app.users.models import User
from tests.databases import make_settings

ONE = prepare(select(literal(1).label("one")))
ADD_USER = prepare(insert(User).returning(User.id, User.created_at, User.is_active))
SENT = {"title": "Ünïcode \N{PILE OF POO} % ' \" \\", "description": "", "completed": True}


@pytest.fixture
async def live_database(live_url: str) -> AsyncIterator[Database]:
    async with open_database(make_settings(live_url, database_pool_size=2)) as database:
        yield database


@asynccontextmanager
async def open_plainly(database: Database) -> AsyncIterator[AsyncSession]:
    """A session of SQLAlchemy's, to which a prepared statement is one like any other."""
    async with database.write() as session, AsyncSession(await session.connection()) as plain:
        yield plain


WAYS = {"by itself": Database.read, "in a transaction": Database.write, "without": open_plainly}


async def add_user(database: Database) -> UUID:
    async with database.write() as session:
        values = {"email": f"{uuid4().hex}@example.com", "password_hash": ""}
        user_id: UUID = (await session.execute(ADD_USER, values)).one().id
        return user_id


async def ask(database: Database, way: str, statement: Executable, values: Mapping[str, object]) -> Row[Any]:
    async with WAYS[way](database) as session:
        return (await session.execute(statement, values)).one()


@pytest.mark.parametrize("way", WAYS)
async def test_a_row_is_the_same_whichever_way_it_came(live_database: Database, way: str) -> None:
    owner_id = await add_user(live_database)
    async with live_database.write() as session:
        created = (await session.execute(todos.CREATE_TODO, {"owner_id": owner_id, **SENT})).one()

    read = await ask(live_database, way, todos.TODO_BY_ID, {"todo_id": created.id, "owner": owner_id})

    assert read == created
    assert read._fields == ("id", "title", "description", "completed", "created_at", "updated_at")
    assert [type(value) for value in read] == [UUID, str, str, bool, datetime, datetime]
    assert read.title == SENT["title"]
    assert read.created_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("way", ["in a transaction", "without"])
async def test_columns_have_their_defaults(live_database: Database, way: str) -> None:
    owner_id = await add_user(live_database)
    started_at = utc_now()
    async with WAYS[way](live_database) as session:
        created = (await session.execute(todos.CREATE_TODO, {"owner_id": owner_id, "title": "x"})).one()
        changed = (await session.execute(todos.UPDATE_TODO, {"todo_id": created.id, "title": "y"})).one()

    assert (created.description, created.completed, created.id.version) == ("", False, 7)
    assert started_at <= created.updated_at < changed.updated_at
    assert (changed.title, changed.created_at) == ("y", created.created_at)


async def test_a_given_value_wins_over_the_default(live_database: Database) -> None:
    email = f"{uuid4().hex}@example.com"
    async with live_database.write() as session:
        values = {"email": email, "password_hash": "", "is_active": False, "id": (given := uuid4())}
        added = (await session.execute(ADD_USER, values)).one()

    assert (added.id, added.is_active) == (given, False)


@pytest.mark.parametrize("way", WAYS)
async def test_the_ways_to_read_a_result_work(live_database: Database, way: str) -> None:
    async with WAYS[way](live_database) as session:
        assert (await session.execute(ONE)).one_or_none() == (1,)
        assert await session.scalar(ONE) == 1
        assert (await session.scalars(ONE)).all() == [1]
        assert (await session.execute(prepare(select(User.id)))).all() == []
        assert await session.scalar(prepare(select(User.id))) is None


async def test_a_parameter_without_a_value_is_refused(live_database: Database) -> None:
    async with live_database.read() as session:
        with pytest.raises(InvalidRequestError, match="todo_id"):
            await session.execute(todos.TODO_BY_ID, {"owner": uuid4()})


async def test_a_list_of_values_is_refused(live_database: Database) -> None:
    statement = prepare(select(User.id).where(User.id.in_(bindparam("ids", expanding=True))))
    async with live_database.read() as session:
        with pytest.raises(TypeError, match="ids"):
            await session.execute(statement, {"ids": []})


@pytest.mark.parametrize("way", ["in a transaction", "without"])
async def test_errors_are_those_of_sqlalchemy(live_database: Database, way: str) -> None:
    values = {"owner_id": uuid4(), "title": "of nobody's"}
    with pytest.raises(IntegrityError) as caught:
        await ask(live_database, way, todos.CREATE_TODO, values)

    assert "of nobody's" not in str(caught.value)
    async with live_database.read() as session:
        assert await session.scalar(ONE) == 1


async def test_what_is_written_is_part_of_the_transaction(live_database: Database) -> None:
    async def write_and_fail() -> None:
        async with live_database.write() as session:
            await session.execute(ADD_USER, {"email": "ada@example.com", "password_hash": ""})
            # The session's own ways see it, and what they do is undone with it.
            assert await session.scalar(select(User.email)) == "ada@example.com"
            session.add(User(email="bob@example.com", password_hash=""))
            await session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write_and_fail()

    async with live_database.read() as session:
        assert (await session.scalars(prepare(select(User.email)))).all() == []


async def test_reading_holds_no_connection_between_two_statements(live_url: str) -> None:
    settings = make_settings(live_url, database_pool_size=1, database_pool_timeout_seconds=0.5)
    async with open_database(settings) as database, database.read() as session, database.read() as another:
        assert await session.scalar(ONE) == 1
        assert await another.scalar(ONE) == 1
        # The other way, too: the session's own connection is no second one at the same time.
        assert await session.scalar(text("SELECT 1")) == 1
        await session.close()
        assert await another.scalar(ONE) == 1


async def test_a_cancelled_statement_gives_its_connection_back(live_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch, reached = PreparedStatement._fetch, asyncio.Event()

    async def fetch_for_ever(self: PreparedStatement, driver: object, values: dict[str, Any]) -> list[Any]:
        await fetch(self, driver, values)
        reached.set()
        return await asyncio.Future()

    async def ask_for_ever(database: Database) -> None:
        async with database.read() as session:
            await session.execute(ONE)

    async with open_database(make_settings(live_url, database_pool_size=1)) as database:
        with monkeypatch.context() as patch:
            patch.setattr(PreparedStatement, "_fetch", fetch_for_ever)
            task = asyncio.create_task(ask_for_ever(database))
            await reached.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        async with database.read() as session:
            assert await session.scalar(ONE) == 1


@pytest.mark.parametrize("way", ["by itself", "in a transaction"])
async def test_a_lost_connection_is_replaced(live_url: str, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    async def find_driver(database: Database) -> object:
        async with database.read() as session:
            return (await (await session.connection()).get_raw_connection()).driver_connection

    async with open_database(make_settings(live_url, database_pool_size=1)) as database:
        before = await find_driver(database)
        async with database.read() as session:
            dialect = type(session.get_bind().dialect)
        monkeypatch.setattr(dialect, "is_disconnect", lambda *_: True)
        with pytest.raises(DBAPIError) as caught:
            await ask(database, way, todos.CREATE_TODO, {"owner_id": uuid4(), "title": "x"})
        monkeypatch.undo()
        after = await find_driver(database)

    assert caught.value.connection_invalidated
    assert after is not before


async def test_a_statement_is_compiled_once(live_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    compile_statement = PreparedStatement.__init__

    def note(self: PreparedStatement, statement: Executable, *arguments: Any) -> None:  # noqa: ANN401  # passed on
        compiled.append(statement)
        compile_statement(self, statement, *arguments)

    monkeypatch.setattr(PreparedStatement, "__init__", note)
    for _ in range(3):
        async with live_database.read() as session:
            await session.execute(ONE)

    assert len(compiled) == 1


def test_only_what_is_prepared_is_taken_for_it() -> None:
    statement = select(Todo.id).limit(bindparam("limit", type_=Integer))

    assert not is_prepared(statement)
    assert is_prepared(prepare(statement))
    assert isinstance(prepare(statement), type(statement))
    assert issubclass(Session, AsyncSession)
