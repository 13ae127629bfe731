"""Throttling of attempts from one network, including IPv6 networks, and from an address that many people share."""

import httpx2
import pytest
from fastapi import FastAPI

from app.core.security.hashing import PasswordCheck, PasswordHasher
from app.core.security.throttling import network_of
from tests.support.accounts import PASSWORD, Account, create_account, request_token
from tests.support.clients import open_client
from tests.support.throttling import FREE, FREE_OF_ADDRESS, WRONG, guess

pytestmark = pytest.mark.usefixtures("clock")


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
