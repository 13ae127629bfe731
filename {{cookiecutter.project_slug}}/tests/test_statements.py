"""What is prepared gives what it would give without; `Session` with an engine for reading runs it by itself."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Executable, Integer, Row, Uuid, bindparam, insert, literal, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.database import Database, Session, open_database
from app.core.models import utc_now
from app.core.statements import PreparedStatement, is_prepared, prepare
from app.users.models import Session as SignIn
from app.users.models import User
from tests.databases import make_settings, unreachable_url

ONE = prepare(select(literal(1).label("one")))
COLUMNS = (User.id, User.email, User.name, User.is_active, User.created_at, User.updated_at)
ADD_USER = prepare(insert(User).returning(*COLUMNS))
USER_BY_ID = prepare(select(*COLUMNS).where(User.id == bindparam("user_id"), User.is_active))
RENAME_USER = prepare(update(User).where(User.id == bindparam("user_id")).returning(*COLUMNS))
ADD_SIGN_IN = prepare(insert(SignIn).returning(SignIn.id))
NAME = "Ünïcode \N{PILE OF POO} % ' \" \\"
SIGN_IN_OF_NOBODY = {
    "user_id": uuid4(),
    "scope": "of nobody's",
    "device": "",
    "last_used_at": utc_now(),
    "expires_at": utc_now(),
}


@pytest.fixture
async def live_database(live_url: str) -> AsyncIterator[Database]:
    async with open_database(make_settings(live_url, database_pool_size=2)) as database:
        yield database


@asynccontextmanager
async def open_plainly(database: Database) -> AsyncIterator[AsyncSession]:
    """A session of SQLAlchemy's, to which a prepared statement is one like any other."""
    async with database.write() as session, AsyncSession(await session.connection()) as plain:
        yield plain


WAYS = {
    "by itself": Database.read,
    "alone": Database.write_one,
    "in a transaction": Database.write,
    "without": open_plainly,
}


def make_user(**changes: object) -> dict[str, object]:
    return {"email": f"{uuid4().hex}@example.com", "password_hash": "", **changes}


async def ask(database: Database, way: str, statement: Executable, values: Mapping[str, object]) -> Row[Any]:
    async with WAYS[way](database) as session:
        return (await session.execute(statement, values)).one()


@pytest.mark.parametrize("way", WAYS)
async def test_a_row_is_the_same_whichever_way_it_came(live_database: Database, way: str) -> None:
    async with live_database.write() as session:
        created = (await session.execute(ADD_USER, make_user(name=NAME))).one()

    read = await ask(live_database, way, USER_BY_ID, {"user_id": created.id})

    assert read == created
    assert read._fields == ("id", "email", "name", "is_active", "created_at", "updated_at")
    assert [type(value) for value in read] == [UUID, str, str, bool, datetime, datetime]
    assert read.name == NAME
    assert read.created_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize("way", WAYS)
async def test_text_has_the_columns_that_it_says(live_database: Database, way: str) -> None:
    statement = prepare(text("SELECT :value AS found").bindparams(bindparam("value", type_=Uuid)).columns(found=Uuid))
    value = uuid4()

    assert (await ask(live_database, way, statement, {"value": value})).found == value


@pytest.mark.parametrize("way", ["in a transaction", "without"])
async def test_columns_have_their_defaults(live_database: Database, way: str) -> None:
    started_at = utc_now()
    async with WAYS[way](live_database) as session:
        created = (await session.execute(ADD_USER, make_user())).one()
        changed = (await session.execute(RENAME_USER, {"user_id": created.id, "name": "y"})).one()

    assert (created.name, created.is_active, created.id.version) == ("", True, 7)
    assert started_at <= created.updated_at < changed.updated_at
    assert (changed.name, changed.created_at) == ("y", created.created_at)


async def test_a_given_value_wins_over_the_default(live_database: Database) -> None:
    async with live_database.write() as session:
        added = (await session.execute(ADD_USER, make_user(is_active=False, id=(given := uuid4())))).one()

    assert (added.id, added.is_active) == (given, False)


@pytest.mark.parametrize("way", ["by itself", "in a transaction", "without"])
async def test_the_ways_to_read_a_result_work(live_database: Database, way: str) -> None:
    async with WAYS[way](live_database) as session:
        assert (await session.execute(ONE)).one_or_none() == (1,)
        assert await session.scalar(ONE) == 1
        assert (await session.scalars(ONE)).all() == [1]
        assert (await session.execute(ONE)).scalar_one() == 1
        assert (await session.execute(ONE)).scalar_one_or_none() == 1
        assert (await session.execute(prepare(select(User.id)))).scalar_one_or_none() is None
        assert (await session.execute(prepare(select(User.id)))).all() == []
        assert await session.scalar(prepare(select(User.id))) is None


async def test_a_parameter_without_a_value_is_refused(live_database: Database) -> None:
    async with live_database.read() as session:
        with pytest.raises(InvalidRequestError, match="user_id"):
            await session.execute(USER_BY_ID)


async def test_a_list_of_values_is_refused(live_database: Database) -> None:
    statement = prepare(select(User.id).where(User.id.in_(bindparam("ids", expanding=True))))
    async with live_database.read() as session:
        with pytest.raises(TypeError, match="ids"):
            await session.execute(statement, {"ids": []})


@pytest.mark.parametrize("way", ["alone", "in a transaction", "without"])
async def test_errors_are_those_of_sqlalchemy(live_database: Database, way: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        await ask(live_database, way, ADD_SIGN_IN, SIGN_IN_OF_NOBODY)

    assert "of nobody's" not in str(caught.value)
    async with live_database.read() as session:
        assert await session.scalar(ONE) == 1


async def test_what_is_written_is_part_of_the_transaction(live_database: Database) -> None:
    async def write_and_fail() -> None:
        async with live_database.write() as session:
            await session.execute(ADD_USER, make_user(email="ada@example.com"))
            # The session's own ways see it, and what they do is undone with it.
            assert await session.scalar(select(User.email)) == "ada@example.com"
            session.add(User(email="bob@example.com", password_hash=""))
            await session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write_and_fail()

    async with live_database.read() as session:
        assert (await session.scalars(prepare(select(User.email)))).all() == []


async def test_one_statement_that_writes_commits_by_itself(live_database: Database) -> None:
    async def write_and_fail() -> None:
        async with live_database.write_one() as session:
            await session.execute(ADD_USER, make_user(email="ada@example.com"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write_and_fail()

    async with live_database.read() as session:
        assert await session.scalar(prepare(select(User.email))) == "ada@example.com"


async def test_where_one_statement_commits_there_is_no_second_one(live_database: Database) -> None:
    async with live_database.write_one() as session:
        await session.execute(ADD_USER, make_user())
        with pytest.raises(InvalidRequestError, match="SessionDep"):
            await session.execute(ADD_USER, make_user())
    async with live_database.write_one() as session:
        with pytest.raises(InvalidRequestError, match="SessionDep"):
            await session.execute(insert(User).values(make_user()))


async def test_those_that_write_one_statement_take_turns_with_other_writers(live_url: str) -> None:
    async def write_one(database: Database) -> None:
        async with database.write_one() as session:
            await session.execute(ADD_USER, make_user())

    async with open_database(make_settings(live_url, database_pool_size=2)) as database:
        async with database.write() as session, database.read() as reading:
            # The one connection that writes, on SQLite; both, on PostgreSQL.
            await session.execute(ADD_USER, make_user())
            await reading.scalar(text("SELECT 1"))
            waiting = [asyncio.create_task(write_one(database)) for _ in range(4)]
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)

        async with database.read() as session:
            assert await session.scalar(text("SELECT count(*) FROM users")) == 5


async def test_what_may_have_committed_is_not_run_again(
    live_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = PreparedStatement._fetch

    async def lose_the_answer(self: PreparedStatement, driver: object, values: dict[str, Any]) -> list[Any]:
        await fetch(self, driver, values)
        raise self._dialect.loaded_dbapi.OperationalError("gone")

    with monkeypatch.context() as patch:
        async with live_database.write_one() as session:
            patch.setattr(type(session.get_bind().dialect), "is_disconnect", lambda *_: True)
            patch.setattr(PreparedStatement, "_fetch", lose_the_answer)
            with pytest.raises(DBAPIError) as caught:
                await session.execute(ADD_USER, make_user())

    assert caught.value.connection_invalidated
    async with live_database.write_one() as session:
        await session.execute(ADD_USER, make_user())
    async with live_database.read() as session:
        assert await session.scalar(text("SELECT count(*) FROM users")) == 2


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
            await ask(database, way, ADD_SIGN_IN, SIGN_IN_OF_NOBODY)
        monkeypatch.undo()
        after = await find_driver(database)

    assert caught.value.connection_invalidated
    assert after is not before


@pytest.mark.parametrize("way", ["by itself", "in a transaction"])
async def test_a_database_out_of_reach_is_an_error_of_sqlalchemy(way: str) -> None:
    async with open_database(make_settings(unreachable_url())) as database:
        with pytest.raises(OperationalError):
            await ask(database, way, ONE, {})


async def test_a_server_that_has_lost_all_connections_is_asked_again(
    live_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, left = PreparedStatement._fetch, [2]

    async def lose_some(self: PreparedStatement, driver: object, values: dict[str, Any]) -> list[Any]:
        if left[0]:
            left[0] -= 1
            raise self._dialect.loaded_dbapi.OperationalError("gone")
        return await fetch(self, driver, values)

    # One of them is for writing, on SQLite.
    async with open_database(make_settings(live_url, database_pool_size=3)) as database, database.read() as session:
        monkeypatch.setattr(type(session.get_bind().dialect), "is_disconnect", lambda *_: True)
        monkeypatch.setattr(PreparedStatement, "_fetch", lose_some)

        assert await session.scalar(ONE) == 1


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


async def test_statements_that_are_made_each_time_do_not_pile_up(
    live_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.statements.MAX_STATEMENTS", 3)
    compiled = []
    note = PreparedStatement.__init__

    def count(self: PreparedStatement, *arguments: Any) -> None:  # noqa: ANN401  # passed on
        compiled.append(self)
        note(self, *arguments)

    monkeypatch.setattr(PreparedStatement, "__init__", count)
    async with live_database.read() as session:
        for _ in range(10):
            await session.execute(USER_BY_ID.where(User.is_admin), {"user_id": uuid4()})
        left = len(session._statements._found)

    assert (len(compiled), left) == (10, 3)


def test_only_what_is_prepared_is_taken_for_it() -> None:
    statement = select(User.id).limit(bindparam("limit", type_=Integer))

    assert not is_prepared(statement)
    assert is_prepared(prepare(statement))
    assert isinstance(prepare(statement), type(statement))
    assert issubclass(Session, AsyncSession)
