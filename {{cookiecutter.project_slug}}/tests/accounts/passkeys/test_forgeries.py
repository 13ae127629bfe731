"""Copied passkeys, forged signatures, and challenges that are used again."""

import json
from collections.abc import Callable

import httpx2
import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import OneTimeToken
from app.core.db.models import utc_now
from tests.support.accounts import Account, create_account
from tests.support.passkeys import (
    PATH,
    PRESENT,
    SIGN_IN,
    Authenticator,
    add,
    add_first,
    begin,
    encode,
    list_events,
    list_messages,
    named,
    remove_oldest,
    sign_in,
    sign_in_with_password,
    use,
)


@pytest.mark.parametrize("count", [5, 4, 0])
async def test_copied_passkey_is_refused_and_owner_is_notified(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection, count: int
) -> None:
    key = Authenticator(count=5)
    await add_first(client, user, key)
    copy = Authenticator(count=count, id=key.id, key=key.key)

    refused = await sign_in(client, copy)

    assert refused.status_code == 422
    assert "counter" in refused.json()["detail"]
    assert (await list_events(connection, user))[-1] == "passkey.copied"
    assert "passkey copied" in await list_messages(connection, user)
    assert (await sign_in(client, key)).status_code == 200


async def test_forged_signature_is_not_reported_as_copied_passkey(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    key = Authenticator(count=5)
    await add_first(client, user, key)

    refused = await sign_in(client, Authenticator(count=1, id=key.id))

    assert refused.json()["code"] == "invalid-passkey-signature"
    assert "passkey.copied" not in await list_events(connection, user)


async def test_passkey_without_signature_counter_works_repeatedly(client: httpx2.AsyncClient, user: Account) -> None:
    key = Authenticator(count=0)
    await add_first(client, user, key)

    answers = [(await sign_in(client, key)).status_code for _ in range(3)]

    assert answers == [200] * 3


# In this order: another key, three other origins, another relying party, a user who is not verified, and a user who is
# not even present.
WRONG: list[Callable[[Authenticator], Authenticator]] = [
    lambda key: Authenticator(id=key.id, count=9),
    lambda key: Authenticator(id=key.id, count=9, key=key.key, origin="https://evil.example"),
    lambda key: Authenticator(id=key.id, count=9, key=key.key, origin="http://localhost"),
    lambda key: Authenticator(id=key.id, count=9, key=key.key, origin="https://localhost:8443"),
    lambda key: Authenticator(id=key.id, count=9, key=key.key, host="evil.example"),
    lambda key: Authenticator(id=key.id, count=9, key=key.key, flags=PRESENT),
    lambda key: Authenticator(id=key.id, count=9, key=key.key, flags=0),
]


@pytest.mark.parametrize("forge", WRONG)
async def test_signature_from_another_site_or_key_is_refused(
    client: httpx2.AsyncClient, user: Account, forge: Callable[[Authenticator], Authenticator]
) -> None:
    key = Authenticator()
    codes = await add_first(client, user, key)
    wrong = forge(key)

    refused = await sign_in(client, wrong)
    error = await sign_in_with_password(client, user, passkey=json.dumps(await use(client, wrong)))
    confirmed = await remove_oldest(client, user, passkey=await use(client, wrong))

    assert (refused.status_code, error, confirmed.status_code) == (422, "invalid_grant", 422)
    wrong.id = b"another"
    if wrong.origin != key.origin or wrong.host != key.host or wrong.flags != key.flags:
        added = await add(client, user, wrong, otp=codes[0])
        assert added.status_code == 422


async def test_passkey_response_works_only_once(client: httpx2.AsyncClient, user: Account) -> None:
    key = Authenticator(count=0)
    await add_first(client, user, key)
    answer = {"credential": await use(client, key)}

    answers = [(await client.post(SIGN_IN, json=answer)).status_code for _ in range(2)]

    assert answers == [200, 422]


async def test_challenge_cannot_be_reused_after_refused_response(client: httpx2.AsyncClient, user: Account) -> None:
    key = Authenticator(count=0)
    await add_first(client, user, key)
    options = (await client.post(f"{SIGN_IN}/options")).json()
    forged = Authenticator(count=0, id=key.id)

    answers = [await client.post(SIGN_IN, json={"credential": each.get(options)}) for each in (forged, key)]

    assert [answer.status_code for answer in answers] == [422, 422]
    assert "challenge" in answers[1].json()["detail"]


async def test_expired_challenge_is_refused(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    key = Authenticator()
    await add_first(client, user, key)
    answer = {"credential": await use(client, key)}
    await connection.execute(update(OneTimeToken).values(expires_at=utc_now()))

    late = await client.post(SIGN_IN, json=answer)

    assert late.status_code == 422


async def test_challenge_works_only_for_its_purpose_and_session(client: httpx2.AsyncClient, user: Account) -> None:
    key = Authenticator()
    codes = await add_first(client, user, key)
    elsewhere = Account(user.id, user.email, (await sign_in(client, key)).json()["access_token"], "")
    other = await create_account(client)
    to_use = (await client.post(f"{SIGN_IN}/options")).json()
    to_create = await begin(client, user, otp=codes[0])

    answers = [
        await client.post(SIGN_IN, json={"credential": key.get(to_create)}),
        await client.post(PATH, json=named(Authenticator().create(to_use)), headers=user.headers),
        await client.post(SIGN_IN, json={"credential": key.get({"challenge": encode(b"x" * 32)})}),
    ]
    for account in (elsewhere, other):
        options = await begin(client, user, passkey=await use(client, key))
        answers.append(await client.post(PATH, json=named(Authenticator().create(options)), headers=account.headers))

    assert [answer.status_code for answer in answers] == [422] * 5
    assert all("challenge" in answer.json()["detail"] for answer in answers)
