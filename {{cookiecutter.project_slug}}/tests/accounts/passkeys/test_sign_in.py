"""Sign-in with a passkey alone."""

import asyncio

import httpx2
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import User
from app.core.audit.models import AuditEvent
from app.core.db.session import Database, open_database
from tests.accounts.test_locks import somebody_is_blocked
from tests.support.accounts import Account, create_account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings
from tests.support.passkeys import (
    GARBAGE,
    ME,
    PATH,
    SIGN_IN,
    Authenticator,
    add_first,
    begin,
    list_events,
    list_messages,
    sign_in,
    use,
)


async def test_passkey_signs_in_without_a_password(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    key = Authenticator()
    codes = await add_first(client, user, key)

    answer = await sign_in(client, key)

    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    tokens = answer.json()
    me = await client.get(ME, headers={"Authorization": f"Bearer {tokens['access_token']}"})
    assert me.json()["id"] == user.id
    refreshed = await request_token(client, "refresh_token", refresh_token=tokens["refresh_token"])
    assert refreshed.status_code == 200
    assert len(set(codes)) == 10
    assert (await list_events(connection, user))[-2:] == ["passkey.added", "sign-in.succeeded"]
    assert await list_messages(connection, user) == ["account changed"]
    (passkey,) = (await client.get(PATH, headers=user.headers)).json()
    assert {*passkey} == {"id", "name", "created_at", "last_used_at"}
    assert passkey["last_used_at"] is not None


async def test_options_name_no_account_and_require_user_verification(client: httpx2.AsyncClient, user: Account) -> None:
    codes = await add_first(client, user, Authenticator())

    to_use = (await client.post(f"{SIGN_IN}/options")).json()
    to_create = await begin(client, user, otp=codes[0])

    assert to_use["allowCredentials"] == []
    assert to_use["userVerification"] == to_create["authenticatorSelection"]["userVerification"] == "required"
    assert to_use["rpId"] == to_create["rp"]["id"] == "localhost"
    assert to_create["authenticatorSelection"]["residentKey"] == "required"
    assert len(to_create["excludeCredentials"]) == 1


@pytest.mark.parametrize("is_active", [True, False])
async def test_passkey_does_not_sign_in_deactivated_or_unverified_account(
    migrated_url: str, client: httpx2.AsyncClient, user: Account, database: Database, is_active: bool
) -> None:
    """The account is deactivated, or it is active but its address is unverified, which the settings do not allow."""
    key = Authenticator()
    await add_first(client, user, key)
    async with database.write() as session:
        await session.execute(update(User).where(User.email == user.email).values(is_active=is_active))
    strict = make_settings(migrated_url, email_verification_required=True)

    async with open_client(create_app(strict, database)) as guarded:
        refused = await sign_in(guarded, key)

    assert refused.status_code == 422
    assert (await sign_in(client, key)).status_code == (200 if is_active else 422)


async def test_passkey_gives_the_scopes_that_the_account_may_have(
    client: httpx2.AsyncClient, user: Account, admin: Account
) -> None:
    key, key_of_admin = Authenticator(), Authenticator()
    await add_first(client, user, key)
    await add_first(client, admin, key_of_admin)

    answers = [
        await sign_in(client, key, scope=["admin"]),
        await sign_in(client, key, scope=["nothing"]),
        await sign_in(client, key, scope=["account"]),
        await sign_in(client, key_of_admin),
    ]

    assert [answer.status_code for answer in answers] == [403, 422, 200, 200]
    assert [answer.json()["scope"] for answer in answers[2:]] == ["account", "account admin"]


async def test_refused_passkey_is_recorded_as_a_failed_sign_in(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    await sign_in(client, Authenticator())

    (details,) = (
        await connection.scalars(select(AuditEvent.details).where(AuditEvent.event == "sign-in.failed"))
    ).all()
    assert details == {"reason": "passkey"}
    metrics = (await client.get("/metrics")).text
    assert 'sign_ins_total{outcome="failure"}' in metrics


async def test_challenges_are_limited_per_network_and_successful_sign_ins_do_not_count(
    migrated_url: str, client: httpx2.AsyncClient, user: Account, database: Database
) -> None:
    key = Authenticator()
    await add_first(client, user, key)
    settings = make_settings(migrated_url, throttling=True, throttle_address_attempts=3)

    async with open_client(create_app(settings, database)) as throttled:
        rewarded = [(await sign_in(throttled, key)).status_code for _ in range(6)]
        asked = [(await throttled.post(f"{SIGN_IN}/options")).status_code for _ in range(4)]

    assert rewarded == [200] * 6
    assert asked == [200, 200, 200, 429]


@pytest.mark.parametrize("part", ["id", "clientDataJSON", "authenticatorData", "signature"])
async def test_malformed_passkey_response_does_not_sign_in(
    client: httpx2.AsyncClient, user: Account, part: str
) -> None:
    key = Authenticator()
    await add_first(client, user, key)

    answers = []
    for garbage in GARBAGE:
        credential = await use(client, key)
        (credential if part == "id" else credential["response"])[part] = garbage
        answers.append((await client.post(SIGN_IN, json={"credential": credential})).status_code)

    assert answers == [422] * len(GARBAGE)


async def test_sign_in_with_a_passkey_is_a_new_session(client: httpx2.AsyncClient, user: Account) -> None:
    key = Authenticator()
    await add_first(client, user, key)

    await sign_in(client, key)

    sessions = (await client.get("/api/v1/auth/sessions", headers=user.headers)).json()
    assert len(sessions) == 2


async def test_response_without_challenge_is_not_recorded(
    client: httpx2.AsyncClient, connection: AsyncConnection
) -> None:
    response = {"clientDataJSON": "AA", "authenticatorData": "AA", "signature": "AA"}
    for _ in range(3):
        refused = await client.post(SIGN_IN, json={"credential": {"id": "AA", "response": response}})
        assert refused.status_code == 422

    assert (await connection.scalars(select(AuditEvent.event))).all() == []


async def test_passkey_being_removed_cannot_sign_in(live_url: str) -> None:
    settings = make_settings(live_url)
    async with open_client(create_app(settings)) as client, open_database(settings) as other:
        user, key = await create_account(client), Authenticator()
        await add_first(client, user, key)
        credential = await use(client, key)
        async with other.write() as another:
            # Change the rows in the order of a passkey's removal: first the user, then the passkey.
            await another.execute(text("UPDATE users SET name = 'x'"))
            signing_in = asyncio.create_task(client.post(SIGN_IN, json={"credential": credential}))
            await somebody_is_blocked(live_url)
            await another.execute(text("DELETE FROM passkeys"))
        answer = await signing_in

    assert answer.status_code == 422, answer.text
