"""Concurrent attempts, and attempts whose outcome is not known yet."""

import asyncio

import pytest
from pydantic import SecretStr

from app.core.config.settings import Settings
from app.core.db.session import Database, open_database
from app.core.errors import TooManyRequestsError
from app.core.security.throttling import WAITING, AttemptCounter, GuessThrottle, purge_counts
from tests.support.accounts import PASSWORD, create_account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.clock import Clock
from tests.support.mail import wait_for
from tests.support.throttling import ELSEWHERE, FREE, HOME, guess, take

pytestmark = pytest.mark.usefixtures("clock")


async def test_concurrent_guesses_do_not_bypass_throttling(live_url: str, settings: Settings) -> None:
    """Guess through two applications, which act as two processes, at the same time and in real transactions."""
    live = settings.model_copy(update={"database_url": SecretStr(live_url), "database_pool_size": 6})
    async with (
        open_client(create_app(live), address=ELSEWHERE) as one,
        open_client(create_app(live), address=ELSEWHERE) as other,
    ):
        guesses = [guess(client, "at-once@example.com") for client in [one, other] * 2 * FREE]
        statuses = sorted(status for (status,) in await asyncio.gather(*guesses))

    assert statuses == [400] * FREE + [429] * 3 * FREE


@pytest.mark.parametrize("at_once", [FREE, 4 * FREE])
async def test_concurrent_successful_sign_ins_to_one_account_are_not_throttled(
    live_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, clock: Clock, at_once: int
) -> None:
    """Sign in through two applications, which act as two processes.

    In the first round the network of the clients is new to the account; from then on the account knows this network.
    """
    clock.run()
    # Long enough that every attempt reports its outcome while others wait for it, even on a slow machine.
    monkeypatch.setattr("app.core.security.throttling.UNDECIDED_SECONDS", 120)
    live = settings.model_copy(update={"database_url": SecretStr(live_url), "database_pool_size": 6})
    async with (
        open_client(create_app(live), address=HOME) as home,
        open_client(create_app(live), address=ELSEWHERE) as one,
        open_client(create_app(live), address=ELSEWHERE) as other,
    ):
        user = await create_account(home)
        statuses = []
        for _ in range(5):
            clients = [one, other] * at_once
            right = [request_token(each, username=user.email, password=PASSWORD) for each in clients[:at_once]]
            statuses += [answer.status_code for answer in await asyncio.gather(*right)]

    assert statuses == [200] * 5 * at_once


async def test_many_changes_with_the_right_password_at_once_are_not_throttled(
    live_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.security.throttling.UNDECIDED_SECONDS", 120)
    live = settings.model_copy(update={"database_url": SecretStr(live_url), "database_pool_size": 6})
    async with open_client(create_app(live), address=HOME) as client:
        user = await create_account(client)
        begin = {"current_password": PASSWORD}
        begun = [client.post("/api/v1/auth/second-factor", json=begin, headers=user.headers) for _ in range(4 * FREE)]
        statuses = {answer.status_code for answer in await asyncio.gather(*begun)}

    assert statuses <= {200, 409}


async def test_attempts_beyond_waiting_limit_are_refused_immediately(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.security.throttling.UNDECIDED_SECONDS", 120)
    monkeypatch.setattr("app.core.security.throttling.MAX_WAITING", 0)
    throttle = GuessThrottle(database, settings)
    counter = AttemptCounter("test", "waiting", 1, reports_outcome=True)
    await take(throttle, database, counter)

    with pytest.raises(TooManyRequestsError):
        await take(throttle, database, counter)


async def test_waiting_attempts_are_limited_for_all_requests_of_a_process(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.security.throttling.UNDECIDED_SECONDS", 120)
    monkeypatch.setattr("app.core.security.throttling.MAX_WAITING", 1)
    counter = AttemptCounter("test", "waiting", 1, reports_outcome=True)
    await take(GuessThrottle(database, settings), database, counter)
    waiting = asyncio.create_task(take(GuessThrottle(database, settings), database, counter))
    await wait_for(lambda: database.info.get(WAITING) == 1)

    with pytest.raises(TooManyRequestsError):
        await asyncio.wait_for(take(GuessThrottle(database, settings), database, counter), 60)

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert database.info[WAITING] == 0


async def test_counting_an_attempt_needs_no_second_connection(live_url: str, settings: Settings) -> None:
    changes = {"database_url": SecretStr(live_url), "database_pool_size": 1, "database_pool_timeout_seconds": 5}
    live = settings.model_copy(update=changes)
    counter = AttemptCounter("test", "connection", 1)
    async with open_database(live) as database, database.write() as session:
        await purge_counts(session, live)

        assert await GuessThrottle(database, live).commit_and_take(session, counter) is None


async def test_attempt_without_outcome_blocks_others_for_limited_time(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr("app.core.security.throttling.UNDECIDED_SECONDS", 0.3)
    throttle = GuessThrottle(database, settings)
    counter = AttemptCounter("lost", "source", 1, reports_outcome=True)
    await take(throttle, database, counter)

    with pytest.raises(TooManyRequestsError):
        await take(throttle, database, counter)
    clock.now += 1

    assert await take(throttle, database, counter) is None
