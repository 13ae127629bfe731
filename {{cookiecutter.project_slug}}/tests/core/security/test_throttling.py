"""Who guesses is slowed down, and nobody else."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import select

from app.core.audit.models import AuditEvent
from app.core.config.settings import Settings
from app.core.db.session import Database, open_database
from app.core.errors import TooManyRequestsError
from app.core.security.hashing import PasswordCheck, PasswordHasher
from app.core.security.throttling import WAITING, AttemptCounter, GuessThrottle, RateLimit, network_of, purge_counts
from tests.support.accounts import CONFIRMATION_PATH, PASSWORD, Account, create_account, request_token, sign_in
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.clock import Clock
from tests.support.databases import make_settings
from tests.support.mail import Mailbox, wait_for

pytestmark = pytest.mark.usefixtures("clock")

FREE = 3
FREE_OF_ADDRESS = 8
CHANGES = 13
ME = "/api/v1/users/me"
HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"
WRONG = "not the password at all"


@pytest.fixture
def settings(migrated_url: str) -> Settings:
    return make_settings(
        migrated_url,
        throttling=True,
        throttle_account_attempts=FREE,
        throttle_address_attempts=FREE_OF_ADDRESS,
        throttle_account_changes=CHANGES,
        throttle_max_delay_seconds=60,
    )


@pytest.fixture
async def home(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(app, address=HOME) as client:
        yield client


@pytest.fixture
async def elsewhere(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(app, address=ELSEWHERE) as client:
        yield client


@pytest.fixture
async def user(home: httpx2.AsyncClient) -> Account:
    """Has signed in from home."""
    return await create_account(home)


async def guess(client: httpx2.AsyncClient, email: str, times: int = 1) -> list[int]:
    answers = [await request_token(client, username=email, password=WRONG) for _ in range(times)]
    return [answer.status_code for answer in answers]


async def take(throttle: GuessThrottle, database: Database, counter: AttemptCounter) -> TooManyRequestsError | None:
    async with database.read() as session:
        return await throttle.commit_and_take(session, counter)


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
    # Also not by a neighbour behind the same address, who guesses at somebody else.
    await guess(home, "nobody@example.com", FREE_OF_ADDRESS + 1)

    at_home = await request_token(home, username=user.email, password=PASSWORD)
    abroad = await request_token(elsewhere, username=user.email, password=PASSWORD)

    assert (at_home.status_code, abroad.status_code) == (200, 429)


async def test_guesses_from_known_address_are_throttled_too(home: httpx2.AsyncClient, user: Account) -> None:
    assert await guess(home, user.email, FREE + 1) == [400] * FREE + [429]


async def test_known_ipv6_address_covers_its_whole_network(app: FastAPI) -> None:
    async with open_client(app, address="2001:db8:1:2::1") as client:
        user = await create_account(client)
    async with open_client(app, address="2001:db8:1:2:ffff::9") as neighbour:
        allowed = await request_token(neighbour, username=user.email, password=PASSWORD)
        assert await guess(neighbour, user.email, FREE + 1) == [400] * FREE + [429]

    assert allowed.status_code == 200


async def test_one_address_cannot_try_one_password_at_many_accounts(elsewhere: httpx2.AsyncClient) -> None:
    statuses = [(await guess(elsewhere, f"person-{number}@example.com"))[0] for number in range(FREE_OF_ADDRESS + 1)]

    assert statuses == [400] * FREE_OF_ADDRESS + [429]


async def test_throttling_at_shared_address_does_not_reveal_existing_accounts(
    home: httpx2.AsyncClient, elsewhere: httpx2.AsyncClient, user: Account
) -> None:
    async def guess_at_both(email: str) -> list[int]:
        return await guess(home, email, FREE) + await guess(elsewhere, email)

    known, unknown = await guess_at_both(user.email), await guess_at_both("nobody@example.com")

    assert known == unknown == [400] * FREE + [429]


async def test_hashing_work_at_shared_address_does_not_reveal_existing_accounts(
    home: httpx2.AsyncClient, elsewhere: httpx2.AsyncClient, user: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str | None] = []
    check = PasswordHasher._verify

    def count_and_check(passwords: PasswordHasher, password: str, password_hash: str | None) -> PasswordCheck:
        verified.append(password_hash)
        return check(passwords, password, password_hash)

    monkeypatch.setattr(PasswordHasher, "_verify", count_and_check)

    async def count_work(client: httpx2.AsyncClient, email: str) -> tuple[list[int], int]:
        before = len(verified)
        return await guess(client, email, FREE + 2), len(verified) - before

    for number in range(FREE_OF_ADDRESS):
        await guess(home, f"person-{number}@example.com")
        await guess(elsewhere, f"person-{number}@example.com")
    known, unknown = await count_work(home, user.email), await count_work(home, "nobody@example.com")
    abroad = await count_work(elsewhere, user.email)

    assert known == unknown == ([429] * (FREE + 2), FREE)
    assert abroad == ([429] * (FREE + 2), 0)


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


async def test_guesses_at_known_accounts_count_towards_limit_of_address(home: httpx2.AsyncClient) -> None:
    accounts = [await create_account(home) for _ in range(FREE_OF_ADDRESS)]
    emails = ["nobody@example.com", *(account.email for account in accounts)]

    statuses = [(await guess(home, email))[0] for email in emails]
    right = await request_token(home, username=emails[-1], password=PASSWORD)

    assert statuses == [400] * FREE_OF_ADDRESS + [429]
    assert right.status_code == 200


async def test_a_refused_address_does_not_use_up_the_attempts_at_an_account(
    app: FastAPI, elsewhere: httpx2.AsyncClient, user: Account
) -> None:
    for number in range(FREE_OF_ADDRESS):
        await guess(elsewhere, f"person-{number}@example.com")
    assert await guess(elsewhere, user.email, FREE + 1) == [429] * (FREE + 1)

    async with open_client(app, address="203.0.113.5") as stranger:
        answer = await request_token(stranger, username=user.email, password=PASSWORD)

    assert answer.status_code == 200


async def test_successful_sign_ins_do_not_count_as_guesses(elsewhere: httpx2.AsyncClient, user: Account) -> None:
    for _ in range(FREE_OF_ADDRESS + FREE + 1):
        assert (await request_token(elsewhere, username=user.email, password=PASSWORD)).status_code == 200


async def test_own_sign_ins_do_not_allow_more_guesses_at_other_accounts(
    elsewhere: httpx2.AsyncClient, user: Account
) -> None:
    statuses = []
    for number in range(FREE_OF_ADDRESS + 2):
        statuses += await guess(elsewhere, f"person-{number}@example.com")
        await request_token(elsewhere, username=user.email, password=PASSWORD)

    assert 429 in statuses


async def test_an_unknown_account_is_throttled_like_a_known_one(elsewhere: httpx2.AsyncClient, user: Account) -> None:
    known = await guess(elsewhere, user.email, FREE + 1)

    assert await guess(elsewhere, "nobody@example.com", FREE + 1) == known


async def test_concurrent_guesses_do_not_bypass_throttling(live_url: str, settings: Settings) -> None:
    """With real transactions, beside each other."""
    live = settings.model_copy(update={"database_url": SecretStr(live_url), "database_pool_size": 6})
    async with (
        open_client(create_app(live), address=ELSEWHERE) as one,
        open_client(create_app(live), address=ELSEWHERE) as other,
    ):
        guesses = [guess(client, "at-once@example.com") for client in [one, other] * 2 * FREE]
        statuses = sorted(status for (status,) in await asyncio.gather(*guesses))

    assert statuses == [400] * FREE + [429] * 3 * FREE


async def test_attempt_with_earlier_time_than_previous_attempt_is_counted(
    elsewhere: httpx2.AsyncClient, user: Account, clock: Clock
) -> None:
    await guess(elsewhere, user.email)

    clock.now -= 0.001

    assert await guess(elsewhere, user.email, FREE) == [400] * (FREE - 1) + [429]


@pytest.mark.parametrize("at_once", [FREE, 4 * FREE])
async def test_concurrent_successful_sign_ins_to_one_account_are_not_throttled(
    live_url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, clock: Clock, at_once: int
) -> None:
    """Two processes, first from a network that is new to the account, and then from one that it knows."""
    clock.run()
    # However slow this machine is.
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


def test_a_rate_limit_allows_each_account_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    limit = RateLimit(6, clock=lambda: now)
    account, other = uuid4(), uuid4()

    def take(account_id: UUID) -> int:
        """Return the seconds to wait; 0 if the request is allowed."""
        try:
            limit.take(account_id)
        except TooManyRequestsError as error:
            return int(error.headers["Retry-After"])
        return 0

    burst = [take(account) for _ in range(8)]
    now += 10
    after_a_sixth_of_a_minute = [take(account), take(account)]
    others = take(other)
    now += 3600
    after_an_hour = [take(account) for _ in range(7)]
    monkeypatch.setattr("app.core.security.throttling.MAX_BUCKETS", 1)
    take(other)

    assert burst == [0] * 6 + [10, 10]
    assert after_a_sixth_of_a_minute == [0, 10]
    assert others == 0
    assert after_an_hour == [0] * 6 + [10]
    # The account was forgotten, and not the other one, which came later.
    assert [take(other), len(limit._buckets)] == [0, 1]


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


async def test_sign_ups_from_one_address_are_throttled(elsewhere: httpx2.AsyncClient, home: httpx2.AsyncClient) -> None:
    async def sign_up(client: httpx2.AsyncClient, number: int) -> int:
        account = {"email": f"new-{number}@example.com", "password": PASSWORD}
        return (await client.post("/api/v1/users", json=account)).status_code

    statuses = [await sign_up(elsewhere, number) for number in range(FREE_OF_ADDRESS + 1)]

    assert statuses == [201] * FREE_OF_ADDRESS + [429]
    assert await sign_up(home, 100) == 201


async def count_events(database: Database, event: str) -> int:
    async with database.read() as session:
        return len((await session.execute(select(AuditEvent.id).where(AuditEvent.event == event))).all())


async def test_an_account_cannot_fill_the_audit_log_with_changes_of_itself(
    home: httpx2.AsyncClient, elsewhere: httpx2.AsyncClient, user: Account, database: Database
) -> None:
    other = await create_account(elsewhere)

    statuses = [
        (await home.patch(ME, json={"name": f"Ada {number}"}, headers=user.headers)).status_code
        for number in range(CHANGES + 5)
    ]

    assert statuses == [200] * CHANGES + [429] * 5
    assert await count_events(database, "user.changed") == CHANGES
    changed = await elsewhere.patch(ME, json={"name": "Grace"}, headers=other.headers)
    assert changed.status_code == 200


async def test_confirmations_with_the_right_password_are_limited(
    home: httpx2.AsyncClient, user: Account, clock: Clock, settings: Settings
) -> None:
    async def confirm() -> int:
        answer = await home.post(CONFIRMATION_PATH, json={"current_password": PASSWORD}, headers=user.headers)
        return answer.status_code

    statuses = [await confirm() for _ in range(CHANGES + 1)]
    clock.now += settings.throttle_memory_seconds

    assert [*statuses, await confirm()] == [201] * CHANGES + [429, 201]


async def test_a_copied_token_cannot_use_up_the_confirmations_of_the_owner(
    home: httpx2.AsyncClient, elsewhere: httpx2.AsyncClient, user: Account
) -> None:
    for number in range(CHANGES + 1):
        await elsewhere.patch(ME, json={"name": f"{number}"}, headers=user.headers)
        await elsewhere.post(CONFIRMATION_PATH, json={"current_password": WRONG}, headers=user.headers)
    own = await sign_in(home, user.id, user.email)

    answer = await home.post(CONFIRMATION_PATH, json={"current_password": PASSWORD}, headers=own.headers)

    assert answer.status_code == 201


@pytest.mark.parametrize("path", ["/api/v1/auth/password/forgot", "/api/v1/auth/email/verification"])
async def test_requested_messages_to_one_address_are_limited(
    home: httpx2.AsyncClient, elsewhere: httpx2.AsyncClient, user: Account, path: str
) -> None:
    for address in (user.email, "nobody@example.com"):
        clients = [home, elsewhere] * FREE
        statuses = [(await client.post(path, json={"email": address})).status_code for client in clients]

        assert statuses == [202] * FREE + [429] * FREE


async def test_requests_for_unsent_messages_do_not_block_forgotten_password(
    home: httpx2.AsyncClient, elsewhere: httpx2.AsyncClient, user: Account
) -> None:
    body = {"email": user.email}
    change = {"current_password": PASSWORD, "new_email": user.email}
    for _ in range(FREE + 1):
        await elsewhere.post("/api/v1/auth/email/verification", json=body)
        await home.post(f"{ME}/email", json=change, headers=user.headers)

    forgot = await elsewhere.post("/api/v1/auth/password/forgot", json=body)

    assert forgot.status_code == 202


@pytest.mark.parametrize("path", ["/api/v1/auth/password/reset", "/api/v1/auth/email/verify"])
async def test_guesses_of_codes_from_one_address_are_throttled(elsewhere: httpx2.AsyncClient, path: str) -> None:
    guess = {"token": "x" * 43} | {"new_password" if "reset" in path else "password": "another long password"}

    statuses = [(await elsewhere.post(path, json=guess)).status_code for _ in range(FREE_OF_ADDRESS + 1)]

    assert statuses == [422] * FREE_OF_ADDRESS + [429]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/auth/token", {"data": {"grant_type": "password", "username": "{}@example.com", "password": WRONG}}, 400),
        ("/users", {"json": {"email": "{}@example.com", "password": PASSWORD}}, 201),
        ("/auth/password/forgot", {"json": {"email": "{}@example.com"}}, 202),
        ("/auth/email/verify", {"json": {"token": "{}" + "x" * 43, "password": PASSWORD}}, 422),
    ],
)
async def test_ipv6_site_cannot_bypass_throttling_with_many_networks(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, dict[str, str]], status: int
) -> None:
    monkeypatch.setattr("app.core.security.throttling.SITE_ALLOWANCE", 2)
    allowed = 2 * FREE_OF_ADDRESS

    async def attempt(number: int, site: str = "2001:db8:77") -> int:
        ((kind, values),) = body.items()
        filled = {name: value.replace("{}", f"person-{site[-2:]}-{number}") for name, value in values.items()}
        async with open_client(app, address=f"{site}:{number:x}::1") as client:
            return (await client.request("POST", f"/api/v1{path}", **{kind: filled})).status_code  # type: ignore[arg-type]  # the name is one of `data` and `json`

    statuses = [await attempt(number) for number in range(allowed + 1)]

    assert statuses == [status] * allowed + [429]
    assert await attempt(0, "2001:db8:78") == status


async def test_messages_for_change_of_address_are_limited(home: httpx2.AsyncClient, user: Account) -> None:
    change = {"current_password": PASSWORD, "new_email": "victim@example.com"}

    statuses = [
        (await home.post(f"{ME}/email", json=change, headers=user.headers)).status_code for _ in range(FREE + 1)
    ]

    assert statuses == [202] * FREE + [429]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::2", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", "unknown"),
        (None, "unknown"),
        ("not an address", "unknown"),
    ],
)
def test_source_of_guesses_is_ipv4_address_or_ipv6_network(address: str | None, network: str) -> None:
    assert network_of(address) == network
