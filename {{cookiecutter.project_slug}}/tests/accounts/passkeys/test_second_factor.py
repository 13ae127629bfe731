"""Passkeys beside a password, an authenticator app and recovery codes."""

import json
from uuid import UUID

import httpx2
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import RecoveryCode
from app.accounts.second_factor import service as second_factor_service
from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.session import Database
from tests.support import second_factor
from tests.support.accounts import PASSWORD, Account, create_account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.clock import Clock
from tests.support.databases import make_settings
from tests.support.passkeys import (
    PATH,
    Authenticator,
    add,
    add_first,
    list_events,
    list_names,
    remove_oldest,
    sign_in,
    sign_in_with_password,
    use,
)


async def test_password_alone_does_not_sign_in_user_with_passkey(client: httpx2.AsyncClient, user: Account) -> None:
    key = Authenticator()
    codes = await add_first(client, user, key)

    asked = await request_token(client, username=user.email, password=PASSWORD)
    answers = [
        await sign_in_with_password(client, user, passkey=json.dumps(await use(client, key))),
        await sign_in_with_password(client, user, otp=codes[0]),
        await sign_in_with_password(client, user, otp=codes[0]),
        await sign_in_with_password(client, user, otp="123456"),
        await sign_in_with_password(client, user, passkey="{}"),
    ]

    assert asked.json()["error"] == "mfa_required"
    assert "passkey" in asked.json()["error_description"]
    assert answers == ["", "", "invalid_grant", "invalid_grant", "invalid_request"]


async def test_passkey_of_another_user_is_refused_as_second_factor(client: httpx2.AsyncClient, user: Account) -> None:
    key, strange = Authenticator(), Authenticator()
    await add_first(client, user, key)
    await add_first(client, await create_account(client), strange)

    error = await sign_in_with_password(client, user, passkey=json.dumps(await use(client, strange)))
    proof = {"current_password": PASSWORD, "passkey": await use(client, strange)}
    refused = await client.post(f"{PATH}/options", json=proof, headers=user.headers)

    assert error == "invalid_grant"
    assert refused.status_code == 422


async def test_authenticator_app_and_passkey_share_the_recovery_codes(
    client: httpx2.AsyncClient, user: Account, clock: Clock, connection: AsyncConnection
) -> None:
    key = Authenticator()
    secret, codes = await second_factor.enable(client, user)
    clock.now += 30

    added = await add(client, user, key, otp=second_factor.show_code(secret, clock.now))
    clock.now += 30
    by_code = await sign_in_with_password(client, user, otp=second_factor.show_code(secret, clock.now))
    by_passkey = await sign_in_with_password(client, user, passkey=json.dumps(await use(client, key)))
    disabled = await client.post(
        f"{second_factor.PATH}/disable",
        json={**second_factor.PROOF, "passkey": await use(client, key)},
        headers=user.headers,
    )
    by_password = await sign_in_with_password(client, user)
    by_recovery_code = await sign_in_with_password(client, user, otp=codes[0])
    removed = await remove_oldest(client, user, otp=codes[1])

    assert (added.status_code, added.json()["recovery_codes"]) == (201, [])
    assert (by_code, by_passkey, disabled.status_code) == ("", "", 204)
    assert (by_password, by_recovery_code, removed.status_code) == ("mfa_required", "", 204)
    assert await sign_in_with_password(client, user) == ""
    assert (await connection.scalars(select(RecoveryCode).where(RecoveryCode.user_id == UUID(user.id)))).all() == []


async def test_authenticator_app_added_beside_passkey_creates_no_new_recovery_codes(
    client: httpx2.AsyncClient, user: Account, clock: Clock
) -> None:
    codes = await add_first(client, user, Authenticator())

    begun = await client.post(second_factor.PATH, json={**second_factor.PROOF, "otp": codes[0]}, headers=user.headers)
    code = {"code": second_factor.show_code(begun.json()["secret"])}
    confirmed = await client.post(f"{second_factor.PATH}/confirm", json=code, headers=user.headers)

    assert confirmed.json()["recovery_codes"] == []
    assert await sign_in_with_password(client, user, otp=codes[1]) == ""


async def test_recovery_code_signs_in_and_removes_lost_passkey(client: httpx2.AsyncClient, user: Account) -> None:
    codes = await add_first(client, user, Authenticator())

    recovered = await request_token(client, username=user.email, password=PASSWORD, otp=codes[0])
    removed = await remove_oldest(client, user, otp=codes[1])

    assert recovered.status_code == 200
    assert removed.status_code == 204
    assert await sign_in_with_password(client, user) == ""


async def test_operator_can_remove_lost_passkey(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection, database: Database, settings: Settings
) -> None:
    key = Authenticator()
    await add_first(client, user, key)

    async with database.write() as session:
        ctx = Context.for_operator(session, database, settings)
        await second_factor_service.remove(ctx, UUID(user.id))

    assert await list_names(client, user) == []
    assert await sign_in_with_password(client, user) == ""
    assert (await sign_in(client, key)).status_code == 422
    assert (await list_events(connection, user))[-2:] == ["second-factor.disabled", "sign-in.succeeded"]


async def test_repeated_wrong_passkeys_as_second_factor_are_throttled(
    migrated_url: str, client: httpx2.AsyncClient, user: Account, database: Database
) -> None:
    key = Authenticator()
    await add_first(client, user, key)
    settings = make_settings(migrated_url, throttling=True, throttle_account_attempts=2)

    async with open_client(create_app(settings, database), address="192.0.2.9") as throttled:
        wrong = json.dumps(await use(throttled, Authenticator(id=key.id, count=9)))
        form = {"username": user.email, "password": PASSWORD, "passkey": wrong}
        answers = [(await request_token(throttled, **form)).status_code for _ in range(3)]

    assert answers == [400, 400, 429]
