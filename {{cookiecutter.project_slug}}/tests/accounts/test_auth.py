import asyncio
import io
from datetime import timedelta
from uuid import UUID

import httpx2
import pytest
import structlog
from fastapi import FastAPI
from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import RefreshToken, User, UserSession
from app.accounts.sessions import service as sessions
from app.core.config.settings import Settings
from app.core.db.models import utc_now
from app.core.db.session import Database, Session
from app.core.http.request import ClientInfo
from tests.support.accounts import PASSWORD, TOKEN_PATH, Account, create_account, request_token, sign_in
from tests.support.applications import create_app
from tests.support.clients import HangUpMiddleware, open_client
from tests.support.databases import make_settings

ME = "/api/v1/users/me"
REVOKE = "/api/v1/auth/revoke"


async def refresh(client: httpx2.AsyncClient, token: str) -> httpx2.Response:
    return await request_token(client, "refresh_token", refresh_token=token)


async def works(client: httpx2.AsyncClient, access_token: str) -> bool:
    response = await client.get(ME, headers={"Authorization": f"Bearer {access_token}"})
    return response.status_code == 200


async def age_refresh_tokens(connection: AsyncConnection, by: timedelta) -> None:
    await connection.execute(update(RefreshToken).values(used_at=utc_now() - by))


async def test_token_response_follows_rfc_6749(client: httpx2.AsyncClient, user: Account) -> None:
    response = await request_token(client, username=user.email, password=PASSWORD)

    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    assert response.json().keys() == {"access_token", "token_type", "expires_in", "refresh_token", "scope"}
    assert response.json()["token_type"] == "bearer"
    assert response.json()["expires_in"] == 15 * 60


async def test_sign_in_ignores_case_and_surrounding_spaces_of_address(
    client: httpx2.AsyncClient, user: Account
) -> None:
    response = await request_token(client, username=f" {user.email.upper()} ", password=PASSWORD)

    assert response.status_code == 200


@pytest.mark.parametrize("username", ["nobody@example.com", " ", "NUL \0", "x" * 10_000, "Ω", "%00"])
async def test_unknown_user_and_wrong_password_get_the_same_response(
    client: httpx2.AsyncClient, user: Account, username: str
) -> None:
    wrong = await request_token(client, username=user.email, password="wrong password 123")

    unknown = await request_token(client, username=username, password="wrong password 123")

    assert unknown.status_code == wrong.status_code == 400
    assert unknown.json() == wrong.json()
    assert unknown.json()["error"] == "invalid_grant"
    assert unknown.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("known", [True, False])
async def test_a_failed_sign_in_is_logged_with_the_clients_address_and_nothing_else(
    client: httpx2.AsyncClient, user: Account, known: bool
) -> None:
    with structlog.testing.capture_logs() as lines:
        await request_token(
            client, username=user.email if known else "nobody@example.com", password="wrong password 123"
        )
        await request_token(client, username=user.email, password=PASSWORD)

    failures = [line for line in lines if line["event"] == "sign-in failed"]
    assert failures == [
        {"event": "sign-in failed", "log_level": "warning", "client": "127.0.0.1", "network": "127.0.0.1"}
    ]


@pytest.mark.parametrize("password", ["\0" * 12, "x" * 5000, "p\u0301" * 2000, "🎉" * 1000])
async def test_wrong_password_with_unusual_characters_or_length_is_refused(
    client: httpx2.AsyncClient, user: Account, password: str
) -> None:
    response = await request_token(client, username=user.email, password=password)

    assert response.status_code == 400
    assert response.json()["error"] == "invalid_grant"


@pytest.mark.parametrize(
    ("content", "content_type", "error"),
    [
        ("", "application/x-www-form-urlencoded", "invalid_request"),
        ("username=a&password=b", "application/x-www-form-urlencoded", "invalid_request"),
        ("grant_type=password", "application/x-www-form-urlencoded", "invalid_request"),
        ("grant_type=password&username=a", "application/x-www-form-urlencoded", "invalid_request"),
        # RFC 6749 §3.1: a parameter without a value is treated as if it were omitted.
        ("grant_type=password&username=a&password=", "application/x-www-form-urlencoded", "invalid_request"),
        ("grant_type=refresh_token", "application/x-www-form-urlencoded", "invalid_request"),
        ("grant_type=password&grant_type=password", "application/x-www-form-urlencoded", "invalid_request"),
        ("grant_type=client_credentials", "application/x-www-form-urlencoded", "unsupported_grant_type"),
        (
            "grant_type=password&username=a&password=b&scope=everything",
            "application/x-www-form-urlencoded",
            "invalid_scope",
        ),
        ("grant_type=refresh_token&refresh_token=unknown", "application/x-www-form-urlencoded", "invalid_grant"),
        ("grant_type=refresh_token&refresh_token=%00", "application/x-www-form-urlencoded", "invalid_grant"),
        ('{"grant_type": "password"}', "application/json", "invalid_request"),
        ("grant_type=password", "text/plain", "invalid_request"),
        ("--x\r\nbroken", "multipart/form-data; boundary=x", "invalid_request"),
        ("--x\r\nbroken", "multipart/form-data", "invalid_request"),
        ("&".join(f"a{number}=1" for number in range(2000)), "application/x-www-form-urlencoded", "invalid_request"),
    ],
)
async def test_invalid_token_request_gets_an_oauth_error(
    client: httpx2.AsyncClient, content: str, content_type: str, error: str
) -> None:
    response = await client.post(TOKEN_PATH, content=content, headers={"Content-Type": content_type})

    assert response.status_code == 400, response.text
    assert response.json()["error"] == error
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", [TOKEN_PATH, REVOKE])
async def test_client_disconnect_is_not_logged_as_an_error(app: FastAPI, logs: io.StringIO, path: str) -> None:
    app.add_middleware(HangUpMiddleware)
    async with open_client(app) as client:
        response = await client.post(path, data={"token": "x"})

    assert response.status_code == 400
    assert response.json()["error"] == "invalid_request"
    assert '"level": "error"' not in logs.getvalue()


async def test_unknown_parameters_are_ignored(client: httpx2.AsyncClient, user: Account) -> None:
    response = await request_token(
        client, username=user.email, password=PASSWORD, client_id="app", client_secret="", audience="x"
    )

    assert response.status_code == 200


async def test_refresh_token_works_only_once(client: httpx2.AsyncClient, user: Account) -> None:
    first = await refresh(client, user.refresh_token)
    second = await refresh(client, user.refresh_token)

    assert first.status_code == 200
    assert first.json()["refresh_token"] != user.refresh_token
    assert await works(client, first.json()["access_token"])
    assert second.status_code == 400
    assert second.json()["error"] == "invalid_grant"


async def test_refresh_token_reused_within_grace_period_keeps_the_session(
    settings: Settings, database: Database
) -> None:
    patient = settings.model_copy(update={"refresh_reuse_grace_seconds": 60})
    async with open_client(create_app(patient, database)) as client:
        user = await create_account(client)
        first = await refresh(client, user.refresh_token)
        await refresh(client, user.refresh_token)

        assert await works(client, first.json()["access_token"])
        assert (await refresh(client, first.json()["refresh_token"])).status_code == 200


async def test_refresh_token_reused_after_grace_period_ends_the_session(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    first = await refresh(client, user.refresh_token)
    await age_refresh_tokens(connection, timedelta(seconds=6))

    replayed = await refresh(client, user.refresh_token)

    assert replayed.status_code == 400
    assert replayed.json()["error"] == "invalid_grant"
    assert not await works(client, first.json()["access_token"])
    assert (await refresh(client, first.json()["refresh_token"])).status_code == 400


@pytest.mark.parametrize("is_extended", [False, True])
async def test_session_revoked_during_refresh_stays_ended(
    live_url: str, monkeypatch: pytest.MonkeyPatch, is_extended: bool
) -> None:
    extend_session = sessions.extend_session
    others: list[asyncio.Task[httpx2.Response]] = []

    async def end_session() -> None:
        others.append(asyncio.create_task(client.post(REVOKE, data={"token": user.access_token})))
        await asyncio.wait(others, timeout=1)

    async def extend_slowly(
        session: Session, settings: Settings, session_id: UUID, client: ClientInfo
    ) -> tuple[UUID, str] | None:
        if not is_extended:
            await end_session()
        extended = await extend_session(session, settings, session_id, client)
        if is_extended:
            await end_session()
        return extended

    monkeypatch.setattr("app.accounts.sessions.service.extend_session", extend_slowly)
    async with open_client(create_app(make_settings(live_url, database_pool_size=5))) as client:
        user = await create_account(client)
        refreshed = await refresh(client, user.refresh_token)
        (ended,) = await asyncio.gather(*others)
        is_alive = await works(client, user.access_token)

    assert ended.status_code == 200
    assert refreshed.status_code in {200, 400}
    assert not is_alive


async def test_concurrent_refreshes_with_same_token_succeed_only_once(
    live_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    extend_session = sessions.extend_session

    async def extend_late(
        session: Session, settings: Settings, session_id: UUID, client: ClientInfo
    ) -> tuple[UUID, str] | None:
        await asyncio.sleep(0.2)
        return await extend_session(session, settings, session_id, client)

    monkeypatch.setattr("app.accounts.sessions.service.extend_session", extend_late)
    settings = make_settings(live_url, database_pool_size=5, refresh_reuse_grace_seconds=60)
    async with open_client(create_app(settings)) as client:
        user = await create_account(client)
        refreshed = await asyncio.gather(*(refresh(client, user.refresh_token) for _ in range(3)))
        is_alive = await works(client, user.access_token)

    assert sorted(answer.status_code for answer in refreshed) == [200, 400, 400]
    assert is_alive


async def test_reused_refresh_token_ends_only_its_own_session(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    other = await sign_in(client, user.id, user.email)
    await refresh(client, user.refresh_token)
    await age_refresh_tokens(connection, timedelta(seconds=6))

    await refresh(client, user.refresh_token)

    assert await works(client, other.access_token)


async def test_an_expired_session_neither_works_nor_refreshes(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    await connection.execute(update(UserSession).values(expires_at=utc_now() - timedelta(seconds=1)))

    assert not await works(client, user.access_token)
    assert (await refresh(client, user.refresh_token)).json()["error"] == "invalid_grant"


async def test_a_refresh_extends_the_session(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    await connection.execute(update(UserSession).values(expires_at=utc_now() + timedelta(seconds=60)))

    await refresh(client, user.refresh_token)

    expires_at = await connection.scalar(text("SELECT expires_at FROM sessions"))
    assert str(expires_at) > (utc_now() + timedelta(days=29)).isoformat(" ")


async def test_signing_in_purges_the_expired_sessions(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    await connection.execute(update(UserSession).values(expires_at=utc_now() - timedelta(seconds=1)))

    await sign_in(client, user.id, user.email)

    assert await connection.scalar(text("SELECT count(*) FROM sessions")) == 1


async def test_used_tokens_are_purged_after_a_sessions_lifetime(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    token = (await refresh(client, user.refresh_token)).json()["refresh_token"]
    await connection.execute(
        update(RefreshToken).where(RefreshToken.used_at.is_not(None)).values(used_at=utc_now() - timedelta(days=31))
    )

    await refresh(client, token)

    assert await connection.scalar(text("SELECT count(*) FROM refresh_tokens")) == 2


async def test_tokens_are_hashed_at_rest(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    stored = (await connection.execute(text("SELECT * FROM refresh_tokens"))).all()
    password_hash = await connection.scalar(text("SELECT password_hash FROM users"))

    assert user.refresh_token not in repr(stored)
    assert str(password_hash).startswith("$argon2id$")


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
async def test_revoking_access_or_refresh_token_ends_the_session(
    client: httpx2.AsyncClient, user: Account, kind: str
) -> None:
    other = await sign_in(client, user.id, user.email)

    response = await client.post(REVOKE, data={"token": getattr(user, kind), "token_type_hint": kind})

    assert response.status_code == 200
    assert not await works(client, user.access_token)
    assert (await refresh(client, user.refresh_token)).status_code == 400
    assert await works(client, other.access_token)


@pytest.mark.parametrize("token", ["unknown", "a.b.c", "\0", "x" * 10_000])
async def test_revoking_an_unknown_token_succeeds(client: httpx2.AsyncClient, token: str) -> None:
    response = await client.post(REVOKE, data={"token": token})

    assert response.status_code == 200


async def test_revocation_without_token_is_refused(client: httpx2.AsyncClient) -> None:
    response = await client.post(REVOKE, data={"token_type_hint": "access_token"})

    assert response.status_code == 400
    assert response.json()["error"] == "invalid_request"


async def test_a_deactivated_user_can_neither_sign_in_nor_refresh(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    await connection.execute(update(User).values(is_active=False))

    assert not await works(client, user.access_token)
    assert (await request_token(client, username=user.email, password=PASSWORD)).json()["error"] == "invalid_grant"
    assert (await refresh(client, user.refresh_token)).json()["error"] == "invalid_grant"


async def test_sign_in_rehashes_password_with_current_parameters(
    user: Account, migrated_url: str, database: Database, connection: AsyncConnection
) -> None:
    settings = make_settings(migrated_url, password_hash_time_cost=2)
    async with open_client(create_app(settings, database)) as client:
        await sign_in(client, user.id, user.email)

        assert "t=2" in str(await connection.scalar(text("SELECT password_hash FROM users")))
        assert (await request_token(client, username=user.email, password=PASSWORD)).status_code == 200


async def test_access_tokens_signed_with_previous_key_still_work(
    user: Account, settings: Settings, migrated_url: str, database: Database
) -> None:
    rotated = make_settings(
        migrated_url, secret_key="a new key with enough bytes 0123456", secret_key_fallbacks=(settings.secret_key,)
    )
    async with open_client(create_app(rotated, database)) as client:
        fresh = await sign_in(client, user.id, user.email)

        assert await works(client, user.access_token)
        assert await works(client, fresh.access_token)
    async with open_client(create_app(settings, database)) as client:
        assert not await works(client, fresh.access_token)
