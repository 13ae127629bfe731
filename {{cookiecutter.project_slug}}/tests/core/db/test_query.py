"""Typed statements have the same results as with SQLAlchemy, in a transaction and without one."""

import gc
import pkgutil
import types
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from importlib import import_module
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints
from uuid import UUID, uuid4

import pytest
from sqlalchemy import JSON, TypeDecorator, bindparam, delete, insert, literal, select, text, update
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    InvalidRequestError,
    MultipleResultsFound,
    NoResultFound,
    OperationalError,
)

import app
from app.accounts.models import User, UserSession
from app.core.db.models import utc_now
from app.core.db.query import Command, Query, columns, delete_batch
from app.core.db.session import Database, Session, open_database
from app.core.http.pagination import PageRequest, paginate
from tests.support.databases import make_settings, unreachable_url


class SomeUser(NamedTuple):
    id: UUID
    email: str
    name: str
    is_active: bool
    created_at: datetime
    updated_at: datetime


COLUMNS = columns(SomeUser, User)
ONE = Query(select(literal(1)))
ADD_USER = Query(insert(User).returning(*COLUMNS), SomeUser)
USER_BY_ID = Query(select(*COLUMNS).where(User.id == bindparam("user_id"), User.is_active), SomeUser)
USERS_BY_EMAILS = Query(select(*COLUMNS).where(User.email.in_(bindparam("emails", expanding=True))), SomeUser)
ALL_EMAILS = Query(select(User.email).order_by(User.email))
RENAME_USER = Query(update(User).where(User.id == bindparam("user_id")).returning(*COLUMNS), SomeUser)
DEACTIVATE = Command(update(User).where(User.name == bindparam("old_name")).values(is_active=False))
INSERT_USER = Command(insert(User))
DELETE_USERS = Command(delete(User))
ADD_SESSION = Command(insert(UserSession))
NAME = "Ünïcode \N{PILE OF POO} % ' \" \\"
SESSION_OF_NOBODY: dict[str, object] = {
    "user_id": uuid4(),
    "scope": "of nobody",
    "device": "",
    "last_used_at": utc_now(),
    "expires_at": utc_now(),
}

Way = Callable[[Database], AbstractAsyncContextManager[Session]]
WAYS: dict[str, Way] = {"autocommit": Database.read, "transaction": Database.write}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@pytest.fixture
async def live_database(live_url: str) -> AsyncIterator[Database]:
    async with open_database(make_settings(live_url, database_pool_size=2)) as database:
        yield database


def make_user(**changes: object) -> dict[str, object]:
    return {"email": f"{uuid4().hex}@example.com", "password_hash": "", **changes}


async def add_user(database: Database, **changes: object) -> SomeUser:
    async with database.write() as session:
        return await session.fetch_one(ADD_USER, **make_user(**changes))


@each_way
async def test_record_holds_written_values(live_database: Database, way: Way) -> None:
    created = await add_user(live_database, name=NAME)

    async with way(live_database) as session:
        read = await session.fetch_one(USER_BY_ID, user_id=created.id)

    assert type(read) is SomeUser
    assert read == created
    assert [type(value) for value in read] == [UUID, str, str, bool, datetime, datetime]
    assert read.name == NAME
    assert read.created_at.utcoffset() == timedelta(0)


async def test_record_equals_row_of_sqlalchemy(live_database: Database) -> None:
    created = await add_user(live_database, name=NAME)

    async with live_database.read() as session:
        row = (await session.execute(USER_BY_ID.statement, {"user_id": created.id})).one()

    assert tuple(row) == created


async def test_columns_have_their_defaults(live_database: Database) -> None:
    started_at = utc_now()
    async with live_database.write() as session:
        created = await session.fetch_one(ADD_USER, **make_user())
        changed = await session.fetch_one(RENAME_USER, user_id=created.id, name="y")

    assert (created.name, created.is_active, created.id.version) == ("", True, 7)
    assert started_at <= created.updated_at < changed.updated_at
    assert (changed.name, changed.created_at) == ("y", created.created_at)


async def test_given_value_wins_over_the_default(live_database: Database) -> None:
    added = await add_user(live_database, is_active=False, id=(given := uuid4()))

    assert (added.id, added.is_active) == (given, False)


@each_way
async def test_fetch_methods_return_rows_records_and_values(live_database: Database, way: Way) -> None:
    created = await add_user(live_database, email="ada@example.com")
    await add_user(live_database, email="bob@example.com")

    async with way(live_database) as session:
        assert await session.fetch_all(ALL_EMAILS) == [("ada@example.com",), ("bob@example.com",)]
        assert await session.fetch_value(ALL_EMAILS) == "ada@example.com"
        assert await session.fetch_one_or_none(USER_BY_ID, user_id=created.id) == created
        assert await session.fetch_one_or_none(USER_BY_ID, user_id=uuid4()) is None
        assert await session.fetch_value(Query(select(User.id).where(User.name == "nobody"))) is None
        with pytest.raises(MultipleResultsFound):
            await session.fetch_one(ALL_EMAILS)
        with pytest.raises(MultipleResultsFound):
            await session.fetch_one_or_none(ALL_EMAILS)
        with pytest.raises(NoResultFound):
            await session.fetch_one(USER_BY_ID, user_id=uuid4())


@each_way
async def test_command_returns_how_many_rows_it_changed(live_database: Database, way: Way) -> None:
    for _ in range(3):
        await add_user(live_database, name="Ada")

    async with way(live_database) as session:
        assert await session.run(INSERT_USER, **make_user()) == 1
        assert await session.run(DEACTIVATE, old_name="nobody") == 0
        assert await session.run(DEACTIVATE, old_name="Ada") == 3
        assert await session.run(DELETE_USERS) == 4


async def test_batch_of_deleted_rows_is_counted(live_database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.db.query.BATCH_SIZE", 2)
    delete_some = delete_batch(User, User.name == bindparam("old_name"))
    for name in ("Ada", "Ada", "Ada", "Bob"):
        await add_user(live_database, name=name)

    async with live_database.write() as session:
        counts = [await session.run(delete_some, old_name="Ada") for _ in range(3)]

    assert counts == [2, 1, 0]


@each_way
async def test_list_of_values_is_a_parameter(live_database: Database, way: Way) -> None:
    created = await add_user(live_database, email="ada@example.com", name=NAME)
    await add_user(live_database, email="bob@example.com")

    async with way(live_database) as session:
        found = await session.fetch_all(USERS_BY_EMAILS, emails=["ada@example.com", "eve@example.com"])
        nothing = await session.fetch_all(USERS_BY_EMAILS, emails=[])

    assert found == [created]
    assert type(found[0]) is SomeUser
    assert nothing == []


@each_way
async def test_missing_parameter_is_refused(live_database: Database, way: Way) -> None:
    async with way(live_database) as session:
        with pytest.raises(InvalidRequestError, match="user_id"):
            await session.fetch_all(USER_BY_ID)


@each_way
async def test_unknown_parameter_is_refused(live_database: Database, way: Way) -> None:
    async with way(live_database) as session:
        with pytest.raises(ArgumentError, match="usr_id"):
            await session.fetch_all(USER_BY_ID, user_id=uuid4(), usr_id=uuid4())


@each_way
async def test_sqlalchemy_runs_typed_statements_with_the_same_results(live_url: str, way: Way) -> None:
    settings = make_settings(live_url, database_direct_statements=False)
    async with open_database(settings) as database, way(database) as session:
        created = await session.fetch_one(ADD_USER, **make_user(name="Ada"))

        assert await session.fetch_one(USER_BY_ID, user_id=created.id) == created
        assert await session.run(INSERT_USER, **make_user(name="Ada")) == 1
        assert await session.run(DEACTIVATE, old_name="Ada") == 2
        assert await session.run(delete_batch(User, User.name == "Ada")) == 2
        with pytest.raises(ArgumentError, match="usr_id"):
            await session.fetch_all(USER_BY_ID, user_id=created.id, usr_id=created.id)
        with pytest.raises(InvalidRequestError, match="user_id"):
            await session.fetch_all(USER_BY_ID)


@each_way
async def test_database_errors_are_sqlalchemy_errors_without_parameter_values(
    live_database: Database, way: Way
) -> None:
    async def add_session() -> None:
        async with way(live_database) as session:
            await session.run(ADD_SESSION, **SESSION_OF_NOBODY)

    with pytest.raises(IntegrityError) as caught:
        await add_session()

    assert "of nobody" not in str(caught.value)
    async with live_database.read() as session:
        assert await session.fetch_value(ONE) == 1


async def test_entities_and_typed_statements_share_a_transaction(live_database: Database) -> None:
    async def write_and_fail() -> None:
        async with live_database.write() as session:
            await session.fetch_one(ADD_USER, **make_user(email="ada@example.com"))
            assert await session.scalar(select(User.email)) == "ada@example.com"
            session.add(User(email="bob@example.com", password_hash=""))
            await session.flush()
            assert len(await session.fetch_all(ALL_EMAILS)) == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await write_and_fail()

    async with live_database.read() as session:
        assert await session.fetch_all(ALL_EMAILS) == []


async def test_reader_never_waits_for_a_second_connection(live_url: str) -> None:
    settings = make_settings(live_url, database_pool_size=1, database_pool_timeout_seconds=0.5)
    async with open_database(settings) as database, database.read() as session:
        assert await session.scalar(text("SELECT 1")) == 1
        assert await session.fetch_value(ONE) == 1
        assert await session.fetch_all(USERS_BY_EMAILS, emails=["ada@example.com"]) == []
        assert await session.fetch_value(ONE) == 1


@each_way
async def test_lost_connection_is_replaced(live_url: str, monkeypatch: pytest.MonkeyPatch, way: Way) -> None:
    async def find_driver(database: Database) -> object:
        async with database.read() as session:
            return (await (await session.connection()).get_raw_connection()).driver_connection

    async def add_session(database: Database) -> None:
        async with way(database) as session:
            await session.run(ADD_SESSION, **SESSION_OF_NOBODY)

    async with open_database(make_settings(live_url, database_pool_size=1)) as database:
        before = await find_driver(database)
        async with database.read() as session:
            dialect = type(session.get_bind().dialect)
        monkeypatch.setattr(dialect, "is_disconnect", lambda *_: True)
        with pytest.raises(DBAPIError) as caught:
            await add_session(database)
        monkeypatch.undo()
        after = await find_driver(database)

    assert caught.value.connection_invalidated
    assert after is not before


@each_way
async def test_unreachable_database_is_an_error_of_sqlalchemy(way: Way) -> None:
    async def ask(database: Database) -> None:
        async with way(database) as session:
            await session.fetch_value(ONE)

    async with open_database(make_settings(unreachable_url())) as database:
        with pytest.raises(OperationalError):
            await ask(database)


@each_way
async def test_closed_session_cannot_be_used_again(live_url: str, way: Way) -> None:
    settings = make_settings(live_url, database_pool_size=1, database_pool_timeout_seconds=0.5)
    async with open_database(settings) as database:
        async with way(database) as unused:
            pass
        async with way(database) as used:
            await used.fetch_value(ONE)
            await used.scalar(text("SELECT 1"))

        for session in (unused, used):
            with pytest.raises(InvalidRequestError, match="DatabaseDep"):
                await session.fetch_value(ONE)
            with pytest.raises(InvalidRequestError, match="closed"):
                await session.scalar(text("SELECT 1"))
        async with database.read() as another:
            assert await another.fetch_value(ONE) == 1


def test_record_that_does_not_fit_its_statement_is_refused() -> None:
    with pytest.raises(TypeError, match=r"SomeUser has the fields id, .*, but its statement returns id, email"):
        Query(select(User.id, User.email), SomeUser)
    with pytest.raises(TypeError, match="SomeUser"):
        paginate(select(User), SomeUser, User, descending=True, after_cursor=False)
    with pytest.raises(TypeError, match=r"SomeUser\.email is not a column of UserSession"):
        columns(SomeUser, UserSession)
    with pytest.raises(TypeError, match="a Command returns none: use Query"):
        Command(select(User.id))


def test_page_has_cursor_only_if_more_rows_follow() -> None:
    users = [SomeUser(uuid4(), "", "", True, utc_now(), utc_now()) for _ in range(3)]

    assert PageRequest(limit=3).build(users, "x").next_cursor is None
    assert PageRequest(limit=2).build(users, "x").next_cursor is not None
    assert PageRequest(limit=2).build(users, "x").items == users[:2]


def all_queries() -> list[Query[Any]]:
    for module in pkgutil.walk_packages(app.__path__, "app."):
        if not module.name.endswith(("__main__", ".main")):
            import_module(module.name)
    return [each for each in gc.get_objects() if isinstance(each, Query) and each.record is not None]


def is_nullable(hint: object) -> bool:
    return get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)


def test_each_field_of_each_record_has_the_type_of_its_column() -> None:
    """The type checker trusts the annotations of records; this test compares them with the models."""
    for query in all_queries():
        hints = get_type_hints(query.record)
        for column in query.statement.exported_columns:  # type: ignore[attr-defined]  # checked by Query
            hint = hints[column.key]
            python_types = [each for each in get_args(hint) if each is not type(None)] if is_nullable(hint) else [hint]
            (python_type,) = [get_origin(each) or each for each in python_types]

            column_type = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
            # SQLAlchemy does not know the types in a JSON column.
            if not isinstance(column_type, JSON):
                assert issubclass(column_type.python_type, python_type), (query.record, column.key)
            if getattr(column, "nullable", None) is not None and getattr(column, "table", None) is not None:
                assert is_nullable(hint) == column.nullable, (query.record, column.key)
