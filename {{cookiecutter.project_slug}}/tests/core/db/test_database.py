"""Behaviour that needs several connections: a busy pool, concurrent requests, committed transactions."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.accounts.models import UserRecord
from app.accounts.users import service as users_service
from app.core.db.session import commit_and_release, open_database
from app.core.security.hashing import PasswordCheck, PasswordHasher
from tests.support.accounts import PASSWORD, confirmed, create_account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import execute_async, make_settings

ME = "/api/v1/users/me"
WRITERS = 5


@pytest.fixture
async def live_client(live_url: str) -> AsyncIterator[httpx2.AsyncClient]:
    settings = make_settings(live_url, database_pool_size=4, refresh_reuse_grace_seconds=60)
    async with open_client(create_app(settings)) as client:
        yield client


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> asyncio.Semaphore:
    """Count the requests that change a user: after `acquire`, one more has a database connection or waits for one."""
    begun = asyncio.Semaphore(0)
    update = users_service.update_user

    async def tell_and_update(*arguments: Any, **options: Any) -> UserRecord:  # noqa: ANN401  # passed on to `update_user`, which declares them
        begun.release()
        return await update(*arguments, **options)

    monkeypatch.setattr(users_service, "update_user", tell_and_update)
    return begun


async def test_waiting_for_connection_times_out_and_pool_recovers(empty_url: str) -> None:
    settings = make_settings(empty_url, database_pool_size=1, database_pool_timeout_seconds=0.05)
    async with open_database(settings) as database:
        async with database.read() as session:
            await session.execute(text("SELECT 1"))
            with pytest.raises(PoolTimeoutError):
                async with database.read() as another:
                    await another.execute(text("SELECT 1"))
        async with database.read() as session:
            assert await session.scalar(text("SELECT 1")) == 1


async def test_a_busy_service_answers_503_and_recovers(live_url: str, updates: asyncio.Semaphore) -> None:
    async with open_client(create_app(make_settings(live_url))) as client:
        user = await create_account(client)
    settings = make_settings(live_url, database_pool_size=1, database_pool_timeout_seconds=3)
    async with open_client(create_app(settings)) as client:
        async with open_database(settings) as other, other.write() as blocker:
            # A request that changes this user waits for the blocker, and holds the only connection meanwhile.
            await blocker.execute(text("UPDATE users SET name = 'x'"))
            blocked = asyncio.create_task(client.patch(ME, json={"name": "y"}, headers=user.headers))
            await updates.acquire()
            refused = await client.get(ME, headers=user.headers)
        allowed = await blocked
        recovered = await client.get(ME, headers=user.headers)

    assert allowed.status_code == 200
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert recovered.status_code == 200


async def test_readers_do_not_wait_for_writers(live_url: str, updates: asyncio.Semaphore) -> None:
    # On PostgreSQL, each writer holds a connection; on SQLite, all writers share one connection that is only for
    # writing.
    holders = 1 if live_url.startswith("sqlite") else WRITERS
    settings = make_settings(live_url, database_pool_size=holders + 1)
    async with open_client(create_app(settings)) as client:
        user = await create_account(client)
        async with open_database(settings) as other, other.write() as blocker:
            await blocker.execute(text("UPDATE users SET name = 'x'"))
            writes = [
                asyncio.create_task(client.patch(ME, json={"name": "y"}, headers=user.headers)) for _ in range(WRITERS)
            ]
            for _ in writes:
                await updates.acquire()
            read = await client.get(ME, headers=user.headers)
        statuses = [(await write).status_code for write in writes]

    assert read.status_code == 200
    assert statuses == [200] * WRITERS


async def test_no_connection_is_held_during_password_hashing(live_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_client(create_app(make_settings(live_url, database_pool_size=1))) as client:
        user = await create_account(client)
        hashing, go_on = asyncio.Event(), asyncio.Event()
        check = PasswordHasher.verify

        async def check_slowly(passwords: PasswordHasher, password: str, password_hash: str | None) -> PasswordCheck:
            hashing.set()
            await go_on.wait()
            return await check(passwords, password, password_hash)

        monkeypatch.setattr(PasswordHasher, "verify", check_slowly)
        for slow in (
            request_token(client, username=user.email, password=PASSWORD),
            client.post(
                f"{ME}/password",
                json={"current_password": PASSWORD, "new_password": "another long password"},
                headers=user.headers,
            ),
        ):
            task = asyncio.create_task(slow)
            await hashing.wait()

            meanwhile = await client.get(ME, headers=user.headers)

            go_on.set()
            assert (await task).status_code in {200, 204}
            assert meanwhile.status_code == 200
            hashing.clear()
            go_on.clear()


async def test_only_one_of_concurrent_refreshes_succeeds(live_client: httpx2.AsyncClient) -> None:
    user = await create_account(live_client)

    answers = await asyncio.gather(
        *(request_token(live_client, "refresh_token", refresh_token=user.refresh_token) for _ in range(8))
    )

    winners = [answer for answer in answers if answer.status_code == 200]
    assert len(winners) == 1
    assert all(answer.json()["error"] == "invalid_grant" for answer in answers if answer not in winners)
    headers = {"Authorization": f"Bearer {winners[0].json()['access_token']}"}
    assert (await live_client.get(ME, headers=headers)).status_code == 200


async def test_concurrent_registrations_create_one_user_per_email(
    live_client: httpx2.AsyncClient, live_url: str
) -> None:
    body = {"email": "ada@example.com", "password": PASSWORD}

    answers = await asyncio.gather(*(live_client.post("/api/v1/users", json=body) for _ in range(8)))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert await execute_async(live_url, "SELECT count(*) FROM users") == [(1,)]


async def test_session_of_concurrent_sign_in_ends_with_password_change(live_client: httpx2.AsyncClient) -> None:
    user = await create_account(live_client)
    change = {"current_password": PASSWORD, "new_password": "another long password"}

    answers = await asyncio.gather(
        *(request_token(live_client, username=user.email, password=PASSWORD) for _ in range(6)),
        live_client.post(f"{ME}/password", json=change, headers=user.headers),
        *(request_token(live_client, username=user.email, password=PASSWORD) for _ in range(6)),
    )

    assert answers[6].status_code == 200
    for answer in (*answers[:6], *answers[7:]):
        if answer.status_code == 200:
            headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
            assert (await live_client.get(ME, headers=headers)).status_code == 401


async def test_concurrent_sign_ins_succeed_after_hash_parameters_changed(live_url: str) -> None:
    async with open_client(create_app(make_settings(live_url))) as client:
        user = await create_account(client)
    async with open_client(create_app(make_settings(live_url, password_hash_time_cost=2))) as client:
        sign_ins = (request_token(client, username=user.email, password=PASSWORD) for _ in range(6))
        answers = await asyncio.gather(*sign_ins)

    assert [answer.status_code for answer in answers] == [200] * 6
    assert await execute_async(live_url, "SELECT count(*) FROM users WHERE password_hash LIKE '%,t=2,%'") == [(1,)]


async def test_replayed_refresh_token_is_refused_and_ends_session(
    live_client: httpx2.AsyncClient, live_url: str
) -> None:
    user = await create_account(live_client)
    await request_token(live_client, "refresh_token", refresh_token=user.refresh_token)
    await execute_async(live_url, "UPDATE refresh_tokens SET used_at = '2020-01-01 00:00:00' WHERE used_at IS NOT NULL")

    response = await request_token(live_client, "refresh_token", refresh_token=user.refresh_token)

    assert response.status_code == 400
    assert await execute_async(live_url, "SELECT count(*) FROM sessions") == [(0,)]


async def test_commit_and_release_ends_transaction(live_url: str) -> None:
    async with open_database(make_settings(live_url)) as database, database.write() as session:
        await session.execute(text("UPDATE users SET name = 'x'"))
        await commit_and_release(session)

        assert not session.in_transaction()


async def test_reading_takes_no_lock(live_url: str) -> None:
    settings = make_settings(live_url, database_statement_timeout_seconds=5)
    async with open_database(settings) as database, database.write() as writer:
        await writer.execute(text("DELETE FROM users"))

        async with database.read() as reader:
            assert await reader.scalar(text("SELECT count(*) FROM users")) == 0


async def test_deleting_user_deletes_sessions_and_refresh_tokens(
    live_client: httpx2.AsyncClient, live_url: str
) -> None:
    user = await create_account(live_client)

    await live_client.delete(ME, headers=await confirmed(live_client, user))

    for table in ("users", "sessions", "refresh_tokens"):
        assert await execute_async(live_url, f"SELECT count(*) FROM {table}") == [(0,)]  # noqa: S608  # fixed names
