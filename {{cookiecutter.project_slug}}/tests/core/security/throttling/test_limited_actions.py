"""Limits of sign-ups, messages, confirmations, changes of an account, and requests per minute."""

from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy import select

from app.core.audit.models import AuditEvent
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.errors import TooManyRequestsError
from app.core.security.throttling import RateLimit
from tests.support.accounts import CONFIRMATION_PATH, PASSWORD, Account, create_account, sign_in
from tests.support.clock import Clock
from tests.support.throttling import CHANGES, FREE, FREE_OF_ADDRESS, ME, WRONG

pytestmark = pytest.mark.usefixtures("clock")


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
    # Only one bucket fits: the limit has forgotten `account`, and keeps `other`, which came later.
    assert [take(other), len(limit._buckets)] == [0, 1]


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


async def test_messages_for_change_of_address_are_limited(home: httpx2.AsyncClient, user: Account) -> None:
    change = {"current_password": PASSWORD, "new_email": "victim@example.com"}

    statuses = [
        (await home.post(f"{ME}/email", json=change, headers=user.headers)).status_code for _ in range(FREE + 1)
    ]

    assert statuses == [202] * FREE + [429]
