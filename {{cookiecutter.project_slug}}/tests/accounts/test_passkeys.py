"""Passkeys by the API: added, used alone and beside the password, copied, lost and removed."""

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import OneTimeToken, Passkey, RecoveryCode, User
from app.accounts.passkeys.service import MAX_PASSKEYS
from app.accounts.second_factor import service as second_factor_service
from app.core.audit.models import AuditEvent
from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.models import utc_now
from app.core.db.session import Database, open_database
from app.outbox.models import OutgoingEmail
from tests.accounts.test_locks import somebody_is_blocked
from tests.support import second_factor
from tests.support.accounts import PASSWORD, Account, create_account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.clock import Clock
from tests.support.databases import execute_async, make_settings
from tests.support.passkeys import PATH, PRESENT, SIGN_IN, Authenticator, add, add_first, begin, encode, sign_in, use

ME = "/api/v1/users/me"


async def list_events(connection: AsyncConnection, user: Account) -> list[str]:
    statement = select(AuditEvent.event).where(AuditEvent.user_id == UUID(user.id)).order_by(AuditEvent.id)
    return list((await connection.scalars(statement)).all())


async def list_messages(connection: AsyncConnection, user: Account) -> list[str]:
    return list((await connection.scalars(select(OutgoingEmail.kind).where(OutgoingEmail.address == user.email))).all())


async def list_names(client: httpx2.AsyncClient, user: Account) -> list[str]:
    return [passkey["name"] for passkey in (await client.get(PATH, headers=user.headers)).json()]


async def remove_oldest(client: httpx2.AsyncClient, user: Account, **proof: object) -> httpx2.Response:
    passkey = (await client.get(PATH, headers=user.headers)).json()[0]
    body = {"current_password": PASSWORD, **proof}
    return await client.request("DELETE", f"{PATH}/{passkey['id']}", json=body, headers=user.headers)


async def sign_in_with_password(client: httpx2.AsyncClient, user: Account, **form: str) -> str:
    """Return the error."""
    answer = await request_token(client, username=user.email, password=PASSWORD, **form)
    return str(answer.json().get("error", ""))


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


# Another key, a browser elsewhere, a browser that lies about where it is, nobody who proves to be there.
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
        await client.post(PATH, json=_named(Authenticator().create(to_use)), headers=user.headers),
        await client.post(SIGN_IN, json={"credential": key.get({"challenge": encode(b"x" * 32)})}),
    ]
    for account in (elsewhere, other):
        options = await begin(client, user, passkey=await use(client, key))
        answers.append(await client.post(PATH, json=_named(Authenticator().create(options)), headers=account.headers))

    assert [answer.status_code for answer in answers] == [422] * 5
    assert all("challenge" in answer.json()["detail"] for answer in answers)


def _named(credential: dict[str, Any]) -> dict[str, Any]:
    return {"name": "Key", "credential": credential}


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
        await client.post(PATH, json=_named(Authenticator().create(last)), headers=user.headers),
    ]

    assert [answer.status_code for answer in refused] == [409, 409]


@pytest.mark.parametrize("is_active", [True, False])
async def test_passkey_does_not_sign_in_deactivated_or_unverified_account(
    migrated_url: str, client: httpx2.AsyncClient, user: Account, database: Database, is_active: bool
) -> None:
    """Deactivated, or with an address that nobody has verified where that is asked for."""
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


# Invalid base64url, JSON, CBOR or content; none may cause an internal error.
GARBAGE: list[object] = [
    "",
    "A",
    "%",
    "AA",
    "x" * 9000,
    "e30",
    encode(b'{"challenge": 1}'),
    encode(b"[" * 5000),
    None,
    1,
    {},
]


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


@pytest.mark.parametrize("part", ["id", "clientDataJSON", "attestationObject"])
async def test_malformed_passkey_cannot_be_added(client: httpx2.AsyncClient, user: Account, part: str) -> None:
    answers = []
    for garbage in GARBAGE:
        credential = Authenticator().create(await begin(client, user))
        (credential if part == "id" else credential["response"])[part] = garbage
        answers.append((await client.post(PATH, json=_named(credential), headers=user.headers)).status_code)

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
            # As a reset of the password does: the user, then the sessions.
            await another.execute(text("UPDATE users SET name = 'x'"))
            adding = asyncio.create_task(
                client.post(PATH, json={"name": "Key", "credential": credential}, headers=user.headers)
            )
            await somebody_is_blocked(live_url)
            await another.execute(text("DELETE FROM sessions"))
        answer = await adding

    assert answer.status_code == 401
    assert await execute_async(live_url, "SELECT count(*) FROM passkeys") == [(0,)]


async def test_passkey_being_removed_cannot_sign_in(live_url: str) -> None:
    settings = make_settings(live_url)
    async with open_client(create_app(settings)) as client, open_database(settings) as other:
        user, key = await create_account(client), Authenticator()
        await add_first(client, user, key)
        credential = await use(client, key)
        async with other.write() as another:
            # As its removal does: the user, then the passkey.
            await another.execute(text("UPDATE users SET name = 'x'"))
            signing_in = asyncio.create_task(client.post(SIGN_IN, json={"credential": credential}))
            await somebody_is_blocked(live_url)
            await another.execute(text("DELETE FROM passkeys"))
        answer = await signing_in

    assert answer.status_code == 422, answer.text
