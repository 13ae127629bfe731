"""Behaviour specific to PostgreSQL: connection settings, prepared statements, row locks."""

import asyncio
import io
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import func, make_url, select, text
from sqlalchemy.exc import DBAPIError, OperationalError

from app.accounts.models import User
from app.core.db.engine import SESSION_SETTINGS
from app.core.db.purge import purge
from app.core.db.query import Query
from app.core.db.session import Database, open_database
from app.core.security.throttling import ThrottleCount, purge_counts
from app.startup import update_once
from tests.support.accounts import create_account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import create_test_database, execute_async, make_settings, server_url
from tests.support.mail import wait_for
from tests.test_cli import manage

pytestmark = pytest.mark.skipif(server_url().startswith("sqlite"), reason="the tests run on SQLite")

NAMES = Query(select(User.name))
WIDEN = "ALTER TABLE users ALTER COLUMN name TYPE VARCHAR(999)"
# More executions than the five after which psycopg prepares a statement on the server.
MANY = 8
OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
READ_ONLY = "transaction_read_only"
FOREIGN_SETTINGS = {
    "PGCLIENTENCODING": "LATIN1",
    "PGTZ": "America/New_York",
    "PGDATESTYLE": "German",
    "PGOPTIONS": "-c search_path=nowhere -c default_transaction_read_only=on",
}


async def connections_are_gone(url: str) -> bool:
    return await execute_async(url, f"SELECT count(*) {OTHERS}") == [(0,)]


@pytest.fixture
async def live_database(live_url: str) -> AsyncIterator[Database]:
    async with open_database(make_settings(live_url, database_pool_size=2)) as database:
        yield database


async def test_connection_to_vanished_server_times_out(live_database: Database) -> None:
    async with live_database.read() as session:
        raw = await (await session.connection()).get_raw_connection()
        driver: Any = raw.driver_connection
        parameters = driver.info.get_parameters()

    assert int(parameters["tcp_user_timeout"]) > 0
    idle, interval, count = (int(parameters[f"keepalives_{name}"]) for name in ("idle", "interval", "count"))
    assert idle + interval * count <= 30


async def test_options_of_the_url_are_kept(live_url: str) -> None:
    url = f"{live_url}&options=-c%20search_path%3Dtenant"
    async with open_database(make_settings(url)) as database, database.read() as session:
        shown = [await session.scalar(text(f"SHOW {name}")) for name in ("search_path", "timezone")]

    assert shown == ["tenant", "UTC"]


@pytest.mark.parametrize("pooler", [{}, {"port": 5432}], ids=["direct", "pooled"])
async def test_environment_and_database_cannot_override_session_settings(
    live_url: str, monkeypatch: pytest.MonkeyPatch, pooler: dict[str, int]
) -> None:
    name = make_url(live_url).database
    for setting in ("IntervalStyle = iso_8601", "standard_conforming_strings = off", "client_encoding = LATIN2"):
        await execute_async(live_url, f"ALTER DATABASE {name} SET {setting}")
    settings = make_settings(live_url)
    with monkeypatch.context() as patch:
        for name, value in FOREIGN_SETTINGS.items():
            patch.setenv(name, value)
        # PostgreSQL itself takes the place of a pooler: only the settings of the connection matter here.
        patch.setattr(type(settings), "pooled_url", property(lambda given: given.url.set(**pooler)))

        async with open_database(settings) as database, database.read() as session:
            shown = {name: await session.scalar(text(f"SHOW {name}")) for name in (*SESSION_SETTINGS, READ_ONLY)}
        async with open_client(create_app(settings)) as client:
            account = await create_account(client)
            stranger = await request_token(client, username="Ω@example.com", password=account.password)
            await client.patch("/api/v1/users/me", json={"name": "Ω"}, headers=account.headers)
            me = (await client.get("/api/v1/users/me", headers=account.headers)).json()

    assert shown == {**SESSION_SETTINGS, "DateStyle": "ISO, DMY", READ_ONLY: "off"}
    assert stranger.status_code == 400
    assert me["name"] == "Ω"
    assert me["created_at"].endswith("Z")


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1", "EUC_JP"])
def test_database_that_is_not_utf8_is_refused_without_traceback(
    tmp_path: Path, logs: io.StringIO, encoding: str
) -> None:
    async def ask() -> list[httpx2.Response]:
        async with open_client(create_app(make_settings(url))) as client:
            return [await client.get("/health/ready"), await request_token(client, username="a", password="b")]

    with create_test_database(tmp_path, encoding) as url:
        commands = ("db upgrade", "db check", "db wait --timeout 0", "db downgrade base", "db reset --yes", "purge")
        outcomes = [manage(url, *command.split()) for command in commands]
        answers = asyncio.run(ask())
        with pytest.raises(OperationalError, match=f"has the encoding {encoding}, but the service needs UTF8"):
            asyncio.run(update_once(make_settings(url)))

    for outcome in outcomes:
        assert outcome.returncode == 1
        assert f"The database has the encoding {encoding}, but the service needs UTF8. Create another" in outcome.stderr
        assert "Traceback" not in outcome.stderr
    assert [answer.status_code for answer in answers] == [503, 503]
    assert encoding not in "".join(answer.text for answer in answers)
    assert f"The database has the encoding {encoding}" in logs.getvalue()


async def test_statement_of_sqlalchemy_fails_once_when_a_migration_changes_the_columns(
    live_database: Database, live_url: str
) -> None:
    async def read() -> object:
        async with live_database.read() as session:
            return (await session.scalars(NAMES.statement)).all()

    for _ in range(MANY):
        await read()
    await execute_async(live_url, WIDEN)

    with pytest.raises(DBAPIError) as caught:
        await read()
    assert caught.value.connection_invalidated
    assert await read() == []


async def test_no_statement_fails_after_a_restart_of_the_server(live_url: str) -> None:
    backend = Query(select(func.pg_backend_pid()))

    async def write(database: Database) -> int | None:
        async with database.write() as session:
            return await session.fetch_value(backend)

    async def write_entities(database: Database) -> int | None:
        async with database.write() as session:
            return await session.scalar(select(func.pg_backend_pid()))

    async with open_database(make_settings(live_url, database_pool_size=4)) as database:
        before = set(await asyncio.gather(*(write(database) for _ in range(12))))
        await execute_async(live_url, f"SELECT pg_terminate_backend(pid) {OTHERS}")
        await wait_for(partial(connections_are_gone, live_url))

        after = set(
            await asyncio.gather(*(write(database) for _ in range(8)), *(write_entities(database) for _ in range(8)))
        )

    assert before & after == set()


async def test_read_only_server_returns_503_and_writes_recover_when_it_is_writable_again(
    live_url: str,
) -> None:
    me = "/api/v1/users/me"
    database = make_url(live_url).database
    async with open_client(create_app(make_settings(live_url))) as client:
        user = await create_account(client)
        await execute_async(live_url, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        await execute_async(live_url, f"SELECT pg_terminate_backend(pid) {OTHERS}")
        await wait_for(partial(connections_are_gone, live_url))

        refused = [await client.patch(me, json={"name": "x"}, headers=user.headers) for _ in range(3)]
        read = await client.get(me, headers=user.headers)
        unready = await client.get("/health/ready")
        # Read-write explicitly, as the default of this session is also read-only.
        await execute_async(
            live_url, f"BEGIN READ WRITE; ALTER DATABASE {database} RESET default_transaction_read_only; COMMIT"
        )
        changed = [await client.patch(me, json={"name": "x"}, headers=user.headers) for _ in range(3)]
        ready = await client.get("/health/ready")

    assert [answer.status_code for answer in refused] == [503] * 3
    assert (read.status_code, unready.status_code) == (200, 503)
    assert [answer.status_code for answer in changed] == [200] * 3
    assert ready.status_code == 200


async def test_purge_skips_locked_rows(live_database: Database, live_url: str) -> None:
    values = "('{}', 1, 0, 0)"
    statement = "INSERT INTO throttle_counts (key, attempts, delay_seconds, last_at) VALUES "
    await execute_async(live_url, statement + ", ".join(map(values.format, "ab")))
    async with live_database.write() as session:
        await session.execute(text("UPDATE throttle_counts SET attempts = 2 WHERE key = 'a'"))

        deleted = await purge(live_database, make_settings(live_url), [purge_counts])

    assert deleted == 1
    async with live_database.read() as session:
        assert (await session.scalars(select(ThrottleCount.key))).all() == ["a"]
