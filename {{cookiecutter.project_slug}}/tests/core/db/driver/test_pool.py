"""The driver's pool: the order of waiting tasks, lost connections, and connections that statements share."""

import asyncio

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.util import greenlet_spawn

from app.core.db.driver.pool import FairPool
from app.core.db.session import Database, open_database
from tests.support.databases import make_settings
from tests.support.mail import wait_for


def pool_of(session: AsyncSession) -> FairPool:
    pool = session.get_bind().engine.pool
    assert isinstance(pool, FairPool)
    return pool


async def test_newcomer_does_not_overtake_a_waiting_task(empty_url: str) -> None:
    served = []

    async def use(database: Database, name: str) -> None:
        async with database.read() as session:
            await session.execute(text("SELECT 1"))
            served.append(name)

    async with open_database(make_settings(empty_url, database_pool_size=1)) as database:
        async with database.read() as session:
            await session.execute(text("SELECT 1"))
            pool = pool_of(session)
            waiter = asyncio.create_task(use(database, "waiter"))
            await wait_for(lambda: pool.waiting)
            # The newcomer requests a connection when one returns to the pool, before the waiting task resumes.
            newcomers = []
            event.listen(
                pool, "checkin", lambda *_: newcomers.append(asyncio.create_task(use(database, "newcomer"))), once=True
            )
        await waiter
        await newcomers[0]

    assert served == ["waiter", "newcomer"]


async def test_metrics_count_connections_in_use_and_waiting_tasks(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.db.session.WATCH_SECONDS", 0.01)

    async def wait_for_metrics(in_use: int, waiting: int) -> None:
        expected = {"database_pool_in_use": in_use, "database_pool_waiting": waiting}
        await wait_for(lambda: all(REGISTRY.get_sample_value(name) == value for name, value in expected.items()))

    async def use(database: Database) -> None:
        async with database.write() as session:
            await session.execute(text("SELECT 1"))

    async with open_database(make_settings(empty_url, database_pool_size=1)) as database:
        async with database.write() as session:
            await session.execute(text("SELECT 1"))
            waiter = asyncio.create_task(use(database))

            await wait_for_metrics(in_use=1, waiting=1)
        await waiter
        await wait_for_metrics(in_use=0, waiting=0)


async def test_cancelled_task_gives_its_slot_back(empty_url: str) -> None:
    held: asyncio.Queue[FairPool] = asyncio.Queue()

    async def hold(database: Database) -> None:
        async with database.write() as session:
            await session.execute(text("SELECT 1"))
            held.put_nowait(pool_of(session))
            await asyncio.Future()

    async with open_database(make_settings(empty_url, database_pool_size=1)) as database:
        holder = asyncio.create_task(hold(database))
        pool = await held.get()
        waiter = asyncio.create_task(hold(database))
        await wait_for(lambda: pool.waiting)
        for task in (waiter, holder):
            task.cancel()
        await asyncio.gather(waiter, holder, return_exceptions=True)

        async with database.write() as session:
            assert await session.scalar(text("SELECT 1")) == 1


async def test_connections_as_old_as_a_lost_one_are_not_used_again(empty_url: str) -> None:
    async with open_database(make_settings(empty_url, database_pool_size=4)) as database:
        engine, pool = await open_pool(database)
        lent = [await pool.acquire_shared(engine) for _ in range(3)]
        old = {each.connection.driver_connection for each in lent}
        for each in lent[1:]:
            pool.release_shared(each)
        await greenlet_spawn(pool.discard, lent[0], ZeroDivisionError())

        new = await pool.acquire_shared(engine)

        assert new.connection.driver_connection not in old
        pool.release_shared(new)
        assert pool.checkedout() == 0


async def test_shared_connection_returns_to_the_pool_after_a_while(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_database(make_settings(empty_url, database_pool_size=4)) as database:
        engine, pool = await open_pool(database)
        first = await pool.acquire_shared(engine)
        pool.release_shared(first)
        again = await pool.acquire_shared(engine)
        pool.release_shared(again)
        monkeypatch.setattr("app.core.db.driver.pool.SHARED_SECONDS", -1)

        later = await pool.acquire_shared(engine)
        later.connection.close()

    assert again is first
    assert later.since > first.since


async def open_pool(database: Database) -> tuple[AsyncEngine, FairPool]:
    async with database.read() as session:
        engine = session.bind
    assert isinstance(engine, AsyncEngine)
    assert isinstance(engine.pool, FairPool)
    return engine, engine.pool
