"""Account pre-hijacking: a stranger creates an account with the victim's address before the victim signs up."""

from collections.abc import AsyncIterator

import httpx2
import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import KnownNetwork, RecoveryCode, SecondFactor, SecondFactorFailures
from app.core.config.settings import Settings
from app.core.db.session import Database
from tests.support.accounts import PASSWORD, Account, create_account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.clock import Clock
from tests.support.databases import make_settings
from tests.support.mail import Mailbox, find_token
from tests.support.second_factor import enable

API = "/api/v1"
ME = f"{API}/users/me"
EMAIL = "victim@example.com"
STRANGERS = "the password of a stranger"
OWN = "the password of the victim"

pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture
def verifying(settings: Settings) -> Settings:
    return settings.model_copy(update={"email_verification_required": True})


@pytest.fixture
async def service(verifying: Settings, database: Database, clock: Clock) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the service with EMAIL_VERIFICATION_REQUIRED."""
    async with open_client(create_app(verifying, database, clock=clock)) as client:
        yield client


async def sign_up(client: httpx2.AsyncClient, password: str, name: str = "") -> int:
    body = {"email": EMAIL, "password": password, "name": name}
    return (await client.post(f"{API}/users", json=body)).status_code


async def confirm(client: httpx2.AsyncClient, token: str, password: str | None) -> int:
    body = {"token": token} | ({} if password is None else {"password": password})
    return (await client.post(f"{API}/auth/email/verify", json=body)).status_code


async def can_sign_in(client: httpx2.AsyncClient, password: str) -> bool:
    return (await request_token(client, username=EMAIL, password=password)).status_code == 200


async def count(connection: AsyncConnection) -> list[object]:
    tables = (SecondFactor, RecoveryCode, KnownNetwork)
    return [await connection.scalar(select(func.count()).select_from(table)) for table in tables]


@pytest.mark.parametrize("password", [None, "", OWN])
async def test_victim_following_strangers_link_does_not_verify_the_account(
    service: httpx2.AsyncClient, mailbox: Mailbox, password: str | None
) -> None:
    await sign_up(service, STRANGERS)
    (message,) = await mailbox.read(EMAIL)

    status = await confirm(service, find_token(message), password)

    assert status == 422
    assert not await can_sign_in(service, STRANGERS)


async def test_repeated_verification_message_does_not_verify_strangers_account(
    service: httpx2.AsyncClient, mailbox: Mailbox
) -> None:
    await sign_up(service, STRANGERS)
    await service.post(f"{API}/auth/email/verification", json={"email": EMAIL})
    messages = await mailbox.read(EMAIL)

    statuses = [await confirm(service, find_token(message), OWN) for message in messages]

    assert statuses == [422, 422]
    assert not await can_sign_in(service, STRANGERS)


@pytest.mark.parametrize("first", [STRANGERS, OWN])
async def test_confirmed_sign_up_gets_the_account_regardless_of_order(
    service: httpx2.AsyncClient, mailbox: Mailbox, first: str
) -> None:
    names = {STRANGERS: "Eve", OWN: "Ada"}
    passwords = [first, *(names.keys() - {first})]
    statuses = [await sign_up(service, password, names[password]) for password in passwords]
    messages = dict(zip(passwords, await mailbox.read(EMAIL), strict=True))

    crossed = await confirm(service, find_token(messages[STRANGERS]), OWN)
    confirmed = await confirm(service, find_token(messages[OWN]), OWN)
    late = await confirm(service, find_token(messages[STRANGERS]), STRANGERS)

    assert (statuses, crossed, confirmed, late) == ([202, 202], 422, 204, 422)
    assert not await can_sign_in(service, STRANGERS)
    signed_in = (await request_token(service, username=EMAIL, password=OWN)).json()
    me = await service.get(ME, headers={"Authorization": f"Bearer {signed_in['access_token']}"})
    assert me.json()["name"] == "Ada"


async def make_strangers_account(client: httpx2.AsyncClient) -> Account:
    """Create an account with the victim's address, and with a session, a known network and a second factor."""
    created = await client.post(f"{API}/users", json={"email": EMAIL, "password": PASSWORD, "name": "Eve"})
    tokens = (await request_token(client, username=EMAIL, password=PASSWORD)).json()
    account = Account(created.json()["id"], EMAIL, tokens["access_token"], tokens["refresh_token"])
    await enable(client, account)
    return account


async def test_confirmed_sign_up_removes_strangers_sessions_and_second_factor(
    client: httpx2.AsyncClient, service: httpx2.AsyncClient, mailbox: Mailbox, connection: AsyncConnection
) -> None:
    stranger = await make_strangers_account(client)
    assert await count(connection) == [1, 10, 1]
    await sign_up(service, OWN)
    message = (await mailbox.read(EMAIL))[-1]

    status = await confirm(service, find_token(message), OWN)

    assert status == 204
    assert await count(connection) == [0, 0, 0]
    assert (await service.get(ME, headers=stranger.headers)).status_code == 401
    assert await can_sign_in(service, OWN)


@pytest.mark.parametrize("is_verified", [False, True])
async def test_password_reset_removes_second_factor_only_if_address_was_unverified(
    client: httpx2.AsyncClient, mailbox: Mailbox, connection: AsyncConnection, is_verified: bool
) -> None:
    await make_strangers_account(client)
    if is_verified:
        await client.post(f"{API}/auth/email/verification", json={"email": EMAIL})
        assert await confirm(client, find_token((await mailbox.read(EMAIL))[-1]), PASSWORD) == 204
    await client.post(f"{API}/auth/password/forgot", json={"email": EMAIL})
    token = find_token((await mailbox.read(EMAIL))[-1])

    reset = await client.post(f"{API}/auth/password/reset", json={"token": token, "new_password": OWN})

    assert reset.status_code == 204
    # The password reset itself adds its network to the known networks.
    assert await count(connection) == ([1, 10, 1] if is_verified else [0, 0, 1])
    assert await can_sign_in(client, OWN) is not is_verified


async def test_strangers_sign_ups_do_not_prevent_victim_from_signing_up(
    migrated_url: str, database: Database, mailbox: Mailbox
) -> None:
    settings = make_settings(migrated_url, email_verification_required=True, throttling=True)
    app = create_app(settings, database)
    async with open_client(app, address="192.0.2.66") as stranger:
        flood = [await sign_up(stranger, STRANGERS) for _ in range(20)]
        sent = len(await mailbox.read(EMAIL))
    async with open_client(app, address="198.51.100.7") as victim:
        status = await sign_up(victim, OWN)
        messages = await mailbox.read(EMAIL)
        confirmed = await confirm(victim, find_token(messages[-1]), OWN)

    assert {*flood, status} == {202}
    assert (sent, len(messages)) == (settings.throttle_account_attempts, settings.throttle_account_attempts + 1)
    assert confirmed == 204


async def test_victim_following_strangers_link_does_not_confirm_change_of_address(
    client: httpx2.AsyncClient, mailbox: Mailbox
) -> None:
    stranger = await create_account(client)
    change = {"new_email": EMAIL, "current_password": PASSWORD}
    await client.post(f"{ME}/email", json=change, headers=stranger.headers)
    token = find_token((await mailbox.read(EMAIL))[-1])

    statuses = [await confirm(client, token, password) for password in (None, "", OWN)]

    assert statuses == [422] * 3
    assert (await client.get(ME, headers=stranger.headers)).json()["email"] == stranger.email
    assert await confirm(client, token, PASSWORD) == 204


async def test_confirmed_sign_up_removes_strangers_second_factor_failures(
    service: httpx2.AsyncClient, client: httpx2.AsyncClient, mailbox: Mailbox, connection: AsyncConnection
) -> None:
    stranger = await make_strangers_account(client)
    await request_token(client, username=EMAIL, password=PASSWORD, otp="000000")
    before = await connection.scalar(select(SecondFactorFailures.failures))
    await sign_up(service, OWN)

    await confirm(service, find_token((await mailbox.read(EMAIL))[-1]), OWN)

    assert (before, stranger.email) == (1, EMAIL)
    assert await connection.scalar(select(SecondFactorFailures.failures)) is None
