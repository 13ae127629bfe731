import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from functools import partial
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.commands import end_sessions
from app.accounts.dependencies import MAX_BODY_SECONDS
from app.accounts.identity_cache import IdentityCache
from app.accounts.models import UserSession
from app.core.config.settings import Settings
from app.core.db.models import utc_now
from app.core.db.session import Database
from tests.support.accounts import PASSWORD, Account, confirmed, create_account, request_token, sign_in
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings

ME = "/api/v1/users/me"
SESSIONS = "/api/v1/auth/sessions"


async def list_sessions(client: httpx2.AsyncClient, user: Account) -> list[dict[str, object]]:
    response = await client.get(SESSIONS, headers=user.headers)
    assert response.status_code == 200, response.text
    sessions: list[dict[str, object]] = response.json()
    return sessions


async def test_sessions_show_device_address_and_times(app: FastAPI, user: Account) -> None:
    async with open_client(app, address="198.51.100.7", device="Phone/1.0") as phone:
        there = await sign_in(phone, user.id, user.email)
        newest, oldest = await list_sessions(phone, there)

    assert (newest["device"], newest["address"], newest["is_current"]) == ("Phone/1.0", "198.51.100.7", True)
    assert (oldest["device"], oldest["address"], oldest["is_current"]) == ("tests", "127.0.0.1", False)
    assert newest["created_at"] == newest["last_used_at"]
    assert str(newest["last_used_at"]) > str(oldest["last_used_at"])
    assert newest["scope"] == "account"


async def test_refresh_updates_last_use_device_and_address(
    app: FastAPI, client: httpx2.AsyncClient, user: Account
) -> None:
    (before,) = await list_sessions(client, user)

    async with open_client(app, address="198.51.100.7", device="Phone/2.0") as phone:
        await request_token(phone, "refresh_token", refresh_token=user.refresh_token)
    (after,) = await list_sessions(client, user)

    assert str(after["last_used_at"]) > str(before["last_used_at"])
    assert after["created_at"] == before["created_at"]
    assert (after["device"], after["address"]) == ("Phone/2.0", "198.51.100.7")


async def test_ended_session_is_signed_out_at_once(client: httpx2.AsyncClient, user: Account) -> None:
    other = await sign_in(client, user.id, user.email)
    (ended,) = [session["id"] for session in await list_sessions(client, user) if not session["is_current"]]

    response = await client.delete(f"{SESSIONS}/{ended}", headers=await confirmed(client, user))

    assert response.status_code == 204
    assert (await client.get(ME, headers=other.headers)).status_code == 401
    refused = await request_token(client, "refresh_token", refresh_token=other.refresh_token)
    assert refused.json()["error"] == "invalid_grant"
    assert (await client.get(ME, headers=user.headers)).status_code == 200
    assert len(await list_sessions(client, user)) == 1


async def test_session_ended_while_request_body_arrives_changes_nothing(
    client: httpx2.AsyncClient, user: Account
) -> None:
    other = await sign_in(client, user.id, user.email)
    (ended,) = [session["id"] for session in await list_sessions(client, user) if not session["is_current"]]

    async def body() -> AsyncIterator[bytes]:
        yield b'{"name": '
        await client.delete(f"{SESSIONS}/{ended}", headers=await confirmed(client, user))
        await asyncio.sleep(MAX_BODY_SECONDS + 0.1)
        yield b'"Changed"}'

    headers = {**other.headers, "Content-Type": "application/json"}
    response = await client.patch(ME, content=body(), headers=headers)

    assert response.status_code == 401
    assert (await client.get(ME, headers=user.headers)).json()["name"] != "Changed"


async def test_cached_session_answers_reads_until_the_cache_expires(
    migrated_url: str, connection: AsyncConnection, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("app.accounts.feature.IdentityCache", partial(IdentityCache, clock=lambda: now))
    settings = make_settings(migrated_url, auth_cache_seconds=5)
    async with open_client(create_app(settings, database)) as client:
        user = await create_account(client)
        await client.get(ME, headers=user.headers)
        changed = await client.patch(ME, json={"name": "Ada"}, headers=user.headers)
        seen = await client.get(ME, headers=user.headers)
        # Ends the session without clearing this worker's cache, as another worker would.
        await connection.execute(delete(UserSession))
        cached = await client.get(ME, headers=user.headers)
        now = 5.1
        late = await client.get(ME, headers=user.headers)
        written = await client.patch(ME, json={"name": "Eve"}, headers=user.headers)

    assert (changed.status_code, seen.json()["name"]) == (200, "Ada")
    assert (cached.status_code, late.status_code, written.status_code) == (200, 401, 401)


async def test_cached_session_cannot_write_once_it_has_ended(
    migrated_url: str, connection: AsyncConnection, database: Database
) -> None:
    async with open_client(create_app(make_settings(migrated_url, auth_cache_seconds=60), database)) as client:
        user = await create_account(client)
        await client.get(ME, headers=user.headers)
        await connection.execute(delete(UserSession))
        written = await client.patch(ME, json={"name": "Eve"}, headers=user.headers)
        read = await client.get(ME, headers=user.headers)

    assert (written.status_code, read.status_code) == (401, 401)


async def test_someone_elses_session_is_not_found(client: httpx2.AsyncClient, user: Account) -> None:
    other = await create_account(client)
    (theirs,) = await list_sessions(client, other)

    answers = [await client.delete(f"{SESSIONS}/{id_}", headers=user.headers) for id_ in (theirs["id"], uuid4())]

    assert [answer.status_code for answer in answers] == [404, 404]
    assert (await client.get(ME, headers=other.headers)).status_code == 200


async def test_expired_sessions_are_not_listed(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    await connection.execute(update(UserSession).values(expires_at=utc_now() - timedelta(seconds=1)))
    again = await sign_in(client, user.id, user.email)

    assert [session["is_current"] for session in await list_sessions(client, again)] == [True]


async def test_sign_in_beyond_session_limit_ends_least_recently_used_session(
    settings: Settings, database: Database
) -> None:
    app = create_app(settings.model_copy(update={"max_sessions_per_user": 3}), database)
    async with open_client(app) as client:
        first = await create_account(client)
        second = await sign_in(client, first.id, first.email)
        third = await sign_in(client, first.id, first.email)
        await request_token(client, "refresh_token", refresh_token=first.refresh_token)

        fourth = await sign_in(client, first.id, first.email)

        answers = [await client.get(ME, headers=each.headers) for each in (first, second, third, fourth)]
        assert [answer.status_code for answer in answers] == [200, 401, 200, 200]
        assert len(await list_sessions(client, fourth)) == 3


async def test_session_ends_at_maximum_age_despite_refreshes(
    settings: Settings, database: Database, connection: AsyncConnection
) -> None:
    app = create_app(settings.model_copy(update={"session_max_lifetime_seconds": 3600}), database)
    async with open_client(app) as client:
        user = await create_account(client)
        (begun,) = await list_sessions(client, user)
        # A session from before the setting, with a later expiry than the setting allows.
        earlier = utc_now() - timedelta(seconds=3000)
        await connection.execute(
            update(UserSession).values(created_at=earlier, expires_at=utc_now() + timedelta(days=30))
        )
        refreshed = await request_token(client, "refresh_token", refresh_token=user.refresh_token)
        (kept,) = await list_sessions(client, user)
        await connection.execute(update(UserSession).values(created_at=utc_now() - timedelta(seconds=3601)))
        late = await request_token(client, "refresh_token", refresh_token=refreshed.json()["refresh_token"])

    def age_at_end(session: dict[str, object]) -> timedelta:
        return datetime.fromisoformat(str(session["expires_at"])) - datetime.fromisoformat(str(session["created_at"]))

    assert age_at_end(begun) == age_at_end(kept) == timedelta(hours=1)
    assert (refreshed.status_code, late.status_code) == (200, 400)


async def test_an_operator_ends_the_sessions_of_one_account_or_of_all(live_url: str) -> None:
    settings = make_settings(live_url)
    async with open_client(create_app(settings)) as client:
        one, other = await create_account(client), await create_account(client)
        for email, expected in ((one.email.upper(), [401, 200]), (None, [401, 401])):
            count = await end_sessions(settings, email)

            answers = [await client.get(ME, headers=each.headers) for each in (one, other)]
            refreshed = await request_token(client, "refresh_token", refresh_token=one.refresh_token)
            assert (count, [answer.status_code for answer in answers]) == (1, expected)
            assert refreshed.status_code == 400


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("x" * 500, "x" * 200),
        ("", ""),
        ("\x1b[31mred\x07", "[31mred"),
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("r\xe9sum\xe9", "r\xe9sum\xe9"),
    ],
    ids=["long", "empty", "escapes", "markup", "latin-1"],
)
async def test_device_name_is_shortened_and_loses_control_characters(
    client: httpx2.AsyncClient, user: Account, sent: str, shown: str
) -> None:
    form = {"grant_type": "password", "username": user.email, "password": PASSWORD}
    await client.post("/api/v1/auth/token", data=form, headers=[(b"User-Agent", sent.encode("latin-1"))])

    newest, _ = await list_sessions(client, user)

    assert newest["device"] == shown
