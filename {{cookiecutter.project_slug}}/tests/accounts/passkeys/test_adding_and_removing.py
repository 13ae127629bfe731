"""Passkeys that are added and removed."""

import asyncio
import secrets
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import Passkey
from app.accounts.passkeys.service import MAX_PASSKEYS
from app.core.db.session import Database, open_database
from tests.accounts.test_locks import somebody_is_blocked
from tests.support.accounts import PASSWORD, Account, create_account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import execute_async, make_settings
from tests.support.passkeys import (
    GARBAGE,
    PATH,
    Authenticator,
    add,
    add_first,
    begin,
    list_names,
    named,
    remove_oldest,
    sign_in,
    use,
)


async def test_second_passkey_is_added_with_the_first_and_can_replace_it(
    client: httpx2.AsyncClient, user: Account
) -> None:
    first, second = Authenticator(), Authenticator()
    await add_first(client, user, first)

    without = await client.post(f"{PATH}/options", json={"current_password": PASSWORD}, headers=user.headers)
    added = await add(client, user, second, "Spare key", passkey=await use(client, first))
    again = await add(client, user, second, passkey=await use(client, first))
    removed = await remove_oldest(client, user, passkey=await use(client, second))
    answers = [(await sign_in(client, key)).status_code for key in (first, second)]

    assert (without.status_code, added.status_code, again.status_code) == (422, 201, 409)
    assert removed.status_code == 204
    assert answers == [422, 200]
    assert await list_names(client, user) == ["Spare key"]


async def test_wrong_password_or_code_neither_adds_nor_removes_passkey(
    client: httpx2.AsyncClient, user: Account
) -> None:
    wrong = {"current_password": "not the password"}
    refused = await client.post(f"{PATH}/options", json=wrong, headers=user.headers)
    codes = await add_first(client, user, Authenticator())

    answers = [
        refused,
        await remove_oldest(client, user),
        await remove_oldest(client, user, current_password="not the password", otp=codes[0]),
        await remove_oldest(client, user, otp="000000"),
    ]

    assert [answer.status_code for answer in answers] == [422] * 4
    assert await list_names(client, user) == ["Key"]


async def test_passkey_of_somebody_else_is_not_found(client: httpx2.AsyncClient, user: Account) -> None:
    await add_first(client, user, Authenticator())
    (passkey,) = (await client.get(PATH, headers=user.headers)).json()
    other = await create_account(client)
    body = {"current_password": PASSWORD}

    refused = await client.request("DELETE", f"{PATH}/{passkey['id']}", json=body, headers=other.headers)

    assert refused.status_code == 404
    assert await list_names(client, other) == []
    assert await list_names(client, user) == ["Key"]


async def test_passkey_cannot_be_added_to_second_account(client: httpx2.AsyncClient, user: Account) -> None:
    key = Authenticator()
    await add_first(client, user, key)

    taken = await add(client, await create_account(client), Authenticator(id=key.id))

    assert taken.status_code == 409


async def test_account_has_no_more_passkeys_than_its_limit(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection, database: Database
) -> None:
    key = Authenticator()
    await add_first(client, user, key)
    last = await begin(client, user, passkey=await use(client, key))
    async with database.write() as session:
        session.add_all(
            Passkey(user_id=UUID(user.id), name="", credential_id=str(n), public_key="", sign_count=0, transports=[])
            for n in range(MAX_PASSKEYS - 1)
        )

    begun = {"current_password": PASSWORD, "passkey": await use(client, key)}
    refused = [
        await client.post(f"{PATH}/options", json=begun, headers=user.headers),
        await client.post(PATH, json=named(Authenticator().create(last)), headers=user.headers),
    ]

    assert [answer.status_code for answer in refused] == [409, 409]


@pytest.mark.parametrize("part", ["id", "clientDataJSON", "attestationObject"])
async def test_malformed_passkey_cannot_be_added(client: httpx2.AsyncClient, user: Account, part: str) -> None:
    answers = []
    for garbage in GARBAGE:
        credential = Authenticator().create(await begin(client, user))
        (credential if part == "id" else credential["response"])[part] = garbage
        answers.append((await client.post(PATH, json=named(credential), headers=user.headers)).status_code)

    assert answers == [422] * len(GARBAGE)


@pytest.mark.parametrize("key_bytes", [b"\x04", b"\x00", b"\xa0", b"\x04" * 65, b"\xa1\x01\x02", b""])
async def test_passkey_with_unreadable_public_key_is_refused(
    client: httpx2.AsyncClient, user: Account, key_bytes: bytes
) -> None:
    class Broken(Authenticator):
        def _public_key(self) -> bytes:
            return key_bytes

    refused = await add(client, user, Broken())

    assert refused.status_code == 422, refused.text


@pytest.mark.parametrize(("size", "status"), [(1023, 201), (1024, 422)])
async def test_passkey_id_longer_than_standard_allows_is_refused(
    client: httpx2.AsyncClient, user: Account, size: int, status: int
) -> None:
    key = Authenticator(id=secrets.token_bytes(size))

    assert (await add(client, user, key)).status_code == status


async def test_no_passkey_is_added_once_the_session_has_ended(live_url: str) -> None:
    settings = make_settings(live_url)
    async with open_client(create_app(settings)) as client, open_database(settings) as other:
        user, key = await create_account(client), Authenticator()
        credential = key.create(await begin(client, user))
        async with other.write() as another:
            # Change the rows in the order of a password reset: first the user, then the sessions.
            await another.execute(text("UPDATE users SET name = 'x'"))
            adding = asyncio.create_task(
                client.post(PATH, json={"name": "Key", "credential": credential}, headers=user.headers)
            )
            await somebody_is_blocked(live_url)
            await another.execute(text("DELETE FROM sessions"))
        answer = await adding

    assert answer.status_code == 401
    assert await execute_async(live_url, "SELECT count(*) FROM passkeys") == [(0,)]
