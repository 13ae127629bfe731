"""The throttle slows down guesses, but no sign-in from a network that the account knows."""

import re
import time

import httpx2
import pytest
from fastapi import FastAPI

from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.errors import TooManyRequestsError
from app.core.security.throttling import AttemptCounter, GuessThrottle, purge_counts
from tests.support.accounts import PASSWORD, Account, create_account, request_token
from tests.support.clients import open_client
from tests.support.clock import Clock
from tests.support.mail import Mailbox
from tests.support.throttling import FREE, FREE_OF_ADDRESS, ME, WRONG, guess, take

pytestmark = pytest.mark.usefixtures("clock")


async def test_repeated_guesses_at_one_account_are_throttled(elsewhere: httpx2.AsyncClient, user: Account) -> None:
    assert await guess(elsewhere, user.email, FREE + 2) == [400] * FREE + [429, 429]
    refused = await request_token(elsewhere, username=user.email, password=PASSWORD)

    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["retry-after"] == "1"


async def test_the_wait_doubles_up_to_the_longest(home: httpx2.AsyncClient, user: Account, clock: Clock) -> None:
    await guess(home, user.email, FREE)
    waits = []
    for _ in range(9):
        refused = await request_token(home, username=user.email, password=WRONG)
        waits.append(int(refused.headers["retry-after"]))
        clock.now += waits[-1]
        assert await guess(home, user.email) == [400]

    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_count_of_guesses_is_reset_after_quiet_period(
    elsewhere: httpx2.AsyncClient, user: Account, clock: Clock, settings: Settings
) -> None:
    await guess(elsewhere, user.email, FREE + 1)

    clock.now += settings.throttle_memory_seconds

    assert await guess(elsewhere, user.email, FREE + 1) == [400] * FREE + [429]


async def test_guesses_of_others_do_not_block_sign_in_from_known_address(
    home: httpx2.AsyncClient, elsewhere: httpx2.AsyncClient, user: Account
) -> None:
    await guess(elsewhere, user.email, FREE_OF_ADDRESS)
    # A neighbour behind the home address, who guesses the password of another account, does not block the user either.
    await guess(home, "nobody@example.com", FREE_OF_ADDRESS + 1)

    at_home = await request_token(home, username=user.email, password=PASSWORD)
    abroad = await request_token(elsewhere, username=user.email, password=PASSWORD)

    assert (at_home.status_code, abroad.status_code) == (200, 429)


async def test_guesses_from_known_address_are_throttled_too(home: httpx2.AsyncClient, user: Account) -> None:
    assert await guess(home, user.email, FREE + 1) == [400] * FREE + [429]


async def test_throttled_account_is_refused_at_address_known_only_to_other_accounts(
    home: httpx2.AsyncClient, elsewhere: httpx2.AsyncClient, app: FastAPI, user: Account
) -> None:
    async with open_client(app, address="203.0.113.9") as client:
        other = await create_account(client)
    await guess(elsewhere, other.email, FREE)

    refused = await request_token(home, username=other.email, password=PASSWORD)

    assert refused.status_code == 429


async def test_owner_can_sign_in_after_password_reset_despite_guesses_of_others(
    app: FastAPI, elsewhere: httpx2.AsyncClient, user: Account, mailbox: Mailbox
) -> None:
    await guess(elsewhere, user.email, FREE + 1)
    async with open_client(app, address="203.0.113.9") as away:
        before = await request_token(away, username=user.email, password=PASSWORD)
        await away.post("/api/v1/auth/password/forgot", json={"email": user.email})
        (message,) = await mailbox.read(user.email)
        body = message.get_body(("plain",))
        assert body is not None
        (token,) = re.findall(r"(?m)^\S*?([A-Za-z0-9_-]{43})\s*$", body.get_content())
        reset = {"token": token, "new_password": "another long password"}
        assert (await away.post("/api/v1/auth/password/reset", json=reset)).status_code == 204
        after = await request_token(away, username=user.email, password="another long password")

    assert (before.status_code, after.status_code) == (429, 200)


async def test_successful_sign_ins_do_not_count_as_guesses(elsewhere: httpx2.AsyncClient, user: Account) -> None:
    for _ in range(FREE_OF_ADDRESS + FREE + 1):
        assert (await request_token(elsewhere, username=user.email, password=PASSWORD)).status_code == 200


async def test_attempt_with_earlier_time_than_previous_attempt_is_counted(
    elsewhere: httpx2.AsyncClient, user: Account, clock: Clock
) -> None:
    await guess(elsewhere, user.email)

    clock.now -= 0.001

    assert await guess(elsewhere, user.email, FREE) == [400] * (FREE - 1) + [429]


async def test_request_with_right_password_that_fails_for_other_reason_is_not_counted(
    home: httpx2.AsyncClient, user: Account
) -> None:
    path, password = "/api/v1/auth/second-factor/disable", {"current_password": PASSWORD}
    disabled = [await home.post(path, json=password, headers=user.headers) for _ in range(FREE + 2)]
    scoped = [
        await request_token(home, username=user.email, password=PASSWORD, scope="admin")
        for _ in range(FREE_OF_ADDRESS + 2)
    ]

    assert [answer.status_code for answer in disabled] == [409] * (FREE + 2)
    assert [answer.json().get("error") for answer in scoped] == ["invalid_scope"] * (FREE_OF_ADDRESS + 2)


async def test_throttling_works_across_hosts_with_different_clocks(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    clock.run()
    waiting = settings.model_copy(update={"throttle_max_delay_seconds": 600, "throttle_memory_seconds": 3600})
    monkeypatch.setattr("app.core.security.throttling.FIRST_DELAY_SECONDS", 600.0)
    throttle = GuessThrottle(database, waiting)
    counter = AttemptCounter("test", "clocks", 1)
    now = time.time
    waits = []
    for hours in (5, 0, -5, 5):
        monkeypatch.setattr("time.time", lambda hours=hours: now() + hours * 3600)
        try:
            await take(throttle, database, counter)
        except TooManyRequestsError as error:
            waits.append(int(error.headers["Retry-After"]))
        async with database.write() as session:
            assert await purge_counts(session, waiting) == 0

    assert len(waits) == 3
    assert all(0 < wait <= 600 for wait in waits)


async def test_the_current_password_cannot_be_guessed_with_a_stolen_token(
    home: httpx2.AsyncClient, user: Account
) -> None:
    change = {"current_password": WRONG, "new_password": "another long password"}

    answers = [await home.post(f"{ME}/password", json=change, headers=user.headers) for _ in range(FREE + 1)]

    assert [answer.status_code for answer in answers] == [422] * FREE + [429]


@pytest.mark.parametrize("path", ["/api/v1/auth/password/reset", "/api/v1/auth/email/verify"])
async def test_guesses_of_codes_from_one_address_are_throttled(elsewhere: httpx2.AsyncClient, path: str) -> None:
    guess = {"token": "x" * 43} | {"new_password" if "reset" in path else "password": "another long password"}

    statuses = [(await elsewhere.post(path, json=guess)).status_code for _ in range(FREE_OF_ADDRESS + 1)]

    assert statuses == [422] * FREE_OF_ADDRESS + [429]
