import asyncio
import io
import time
from datetime import timedelta
from uuid import uuid4

import httpx2
import pytest
from pydantic import ValidationError
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import KnownNetwork, RefreshToken, UserSession
from app.core.audit.models import AuditEvent
from app.core.config.settings import Settings
from app.core.db.models import Base, utc_now
from app.core.db.purge import purge
from app.core.db.session import Database, Session
from app.core.security.throttling import ThrottleCount
from app.features import FEATURES
from tests.support.accounts import PASSWORD, Account, confirmed, create_account, request_token, sign_in
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.clock import Clock
from tests.support.databases import execute_async, make_settings

ME = "/api/v1/users/me"
EVENTS = "/api/v1/audit-events"
WRONG = "not the password at all"


async def list_events(client: httpx2.AsyncClient, admin: Account, **query: str) -> list[dict[str, object]]:
    response = await client.get(EVENTS, params=query, headers=admin.headers)
    assert response.status_code == 200, response.text
    events: list[dict[str, object]] = response.json()["items"]
    return events


async def test_sign_ins_and_changes_of_account_are_recorded(
    client: httpx2.AsyncClient, admin: Account, connection: AsyncConnection
) -> None:
    user = await create_account(client)
    await client.patch(ME, json={"name": "Ada"}, headers=user.headers)
    await request_token(client, username=user.email, password=WRONG)
    change = {"current_password": WRONG, "new_password": "another long password"}
    await client.post(f"{ME}/password", json=change, headers=user.headers)
    proof = {**change, "current_password": PASSWORD}
    changed = await client.post(f"{ME}/password", json=proof, headers=user.headers)
    await client.post("/api/v1/auth/revoke", data={"token": changed.json()["access_token"]})
    again = await sign_in(client, user.id, user.email, "another long password")
    await request_token(client, "refresh_token", refresh_token=again.refresh_token)
    await connection.execute(update(RefreshToken).values(used_at=utc_now() - timedelta(minutes=1)))
    await request_token(client, "refresh_token", refresh_token=again.refresh_token)
    await client.patch(f"/api/v1/users/{user.id}", json={"is_active": False}, headers=await confirmed(client, admin))
    await client.delete(f"/api/v1/users/{user.id}", headers=await confirmed(client, admin))

    events = await list_events(client, admin, user_id=user.id)

    assert [(event["event"], event["actor_id"]) for event in reversed(events)] == [
        ("user.created", None),
        ("sign-in.succeeded", user.id),
        ("user.changed", user.id),
        ("sign-in.failed", None),
        ("password.refused", user.id),
        ("password.changed", user.id),
        ("session.ended", user.id),
        ("sign-in.succeeded", user.id),
        ("refresh-token.reused", user.id),
        ("user.changed", admin.id),
        ("user.deleted", admin.id),
    ]


async def test_event_has_address_device_and_request_id(
    client: httpx2.AsyncClient, admin: Account, user: Account
) -> None:
    await client.patch(
        ME, json={"name": "Ada"}, headers={**user.headers, "X-Request-ID": "request-1234", "User-Agent": "Phone/1.0"}
    )

    (event,) = await list_events(client, admin, user_id=user.id, event="user.changed")

    assert event["address"] == "127.0.0.1"
    assert event["device"] == "Phone/1.0"
    assert event["request_id"] == "client-request-1234"
    assert event["details"] == {"changes": {"name": ["", "Ada"]}}


async def test_change_is_recorded_with_old_and_new_values(
    client: httpx2.AsyncClient, admin: Account, user: Account
) -> None:
    change = {"email": "new@example.com", "is_admin": True}
    await client.patch(f"/api/v1/users/{user.id}", json=change, headers=await confirmed(client, admin))

    (event,) = await list_events(client, admin, user_id=user.id, event="user.changed")

    expected = {"email": [user.email, "new@example.com"], "is_admin": [False, True]}
    assert event["details"] == {"changes": expected}


async def test_forbidden_request_is_recorded_with_its_user(
    client: httpx2.AsyncClient, admin: Account, user: Account
) -> None:
    await client.get("/api/v1/users", headers=user.headers)
    await client.delete(f"{ME}?x=y", headers=user.headers)

    events = await list_events(client, admin, event="request.forbidden")

    assert [(event["actor_id"], event["user_id"], event["address"]) for event in events] == [
        (user.id, user.id, "127.0.0.1")
    ] * 2
    details = [event["details"] for event in events]
    assert [(each["method"], each["path"]) for each in details] == [("DELETE", ME), ("GET", "/api/v1/users")]  # type: ignore[index]  # details are JSON, declared as object
    assert "confirmation" in str(details[0])


@pytest.mark.usefixtures("clock")
async def test_recorded_refusals_are_limited_separately_for_each_user(
    migrated_url: str, database: Database, admin: Account
) -> None:
    settings = make_settings(migrated_url, throttling=True, throttle_address_attempts=3)
    async with open_client(create_app(settings, database)) as client:
        flooding, other = await create_account(client), await create_account(client)
        for _ in range(10):
            await client.get(EVENTS, headers=flooding.headers)
        await client.get(EVENTS, headers=other.headers)

        events = await list_events(client, admin, event="request.forbidden")

    assert [event["actor_id"] for event in events] == [other.id, *[flooding.id] * 3]


@pytest.mark.usefixtures("clock")
async def test_throttled_request_is_recorded(migrated_url: str, database: Database, admin: Account) -> None:
    settings = make_settings(migrated_url, throttling=True, throttle_account_attempts=1)
    async with open_client(create_app(settings, database)) as client:
        user = await create_account(client)
        proof = {"current_password": WRONG}
        for _ in range(2):
            await client.post("/api/v1/auth/confirmation", json=proof, headers=user.headers)
        for _ in range(2):
            await request_token(client, username="nobody@example.com", password=WRONG)

        events = await list_events(client, admin, event="request.throttled")

    assert [(event["actor_id"], event["address"]) for event in events] == [(None, "127.0.0.1"), (user.id, "127.0.0.1")]


async def test_refusal_is_answered_even_if_it_cannot_be_recorded(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection, logs: io.StringIO
) -> None:
    await connection.execute(text("ALTER TABLE audit_events RENAME TO lost_events"))

    answer = await client.get(EVENTS, headers=user.headers)

    assert answer.status_code == 403
    assert "a refusal was not recorded" in logs.getvalue()


async def test_failed_sign_in_is_recorded_without_typed_name_or_password(
    client: httpx2.AsyncClient, admin: Account
) -> None:
    await request_token(client, username="my secret password", password=WRONG)

    events = await client.get(EVENTS, headers=admin.headers)

    assert events.json()["items"][0]["event"] == "sign-in.failed"
    assert "secret" not in events.text
    assert WRONG not in events.text


async def test_a_refused_change_is_not_recorded(client: httpx2.AsyncClient, admin: Account, user: Account) -> None:
    other = await create_account(client)

    taken = await client.patch(
        f"/api/v1/users/{user.id}", json={"email": other.email}, headers=await confirmed(client, admin)
    )

    assert taken.status_code == 409
    assert await list_events(client, admin, user_id=user.id, event="user.changed") == []


async def test_only_administrators_can_read_events(client: httpx2.AsyncClient, user: Account) -> None:
    assert (await client.get(EVENTS, headers=user.headers)).status_code == 403
    assert (await client.get(EVENTS)).status_code == 401


async def test_invalid_event_name_is_refused(client: httpx2.AsyncClient, admin: Account) -> None:
    unknown = await client.get(EVENTS, params={"event": "nothing"}, headers=admin.headers)
    refused = await client.get(f"{EVENTS}?event=%00", headers=admin.headers)

    assert (unknown.status_code, unknown.json()["items"]) == (200, [])
    assert refused.status_code == 422


async def test_events_come_in_pages(client: httpx2.AsyncClient, admin: Account) -> None:
    for _ in range(4):
        await request_token(client, username=admin.email, password=WRONG)

    first = (await client.get(EVENTS, params={"limit": 3}, headers=admin.headers)).json()
    second = (
        await client.get(EVENTS, params={"limit": 3, "cursor": first["next_cursor"]}, headers=admin.headers)
    ).json()

    ids = [event["id"] for event in first["items"] + second["items"]]
    assert len(set(ids)) == len(ids) >= 6
    assert ids == sorted(ids, reverse=True)


async def test_the_database_refuses_to_change_an_event(connection: AsyncConnection, user: Account) -> None:
    with pytest.raises(DBAPIError, match="audit events never change"):
        await connection.execute(text("UPDATE audit_events SET event = 'nothing'"))


@pytest.mark.parametrize("statement", ["DELETE FROM audit_events", "TRUNCATE audit_events"])
async def test_the_database_refuses_to_delete_an_event_of_today(
    connection: AsyncConnection, user: Account, statement: str
) -> None:
    if connection.dialect.name == "sqlite":
        # SQLite has no TRUNCATE.
        statement = "DELETE FROM audit_events"
    with pytest.raises(DBAPIError, match="audit events stay for a day"):
        await connection.execute(text(statement))


def test_event_lifetime_below_one_day_is_refused() -> None:
    with pytest.raises(ValidationError, match="audit_log_lifetime_seconds"):
        make_settings("sqlite://", audit_log_lifetime_seconds=24 * 3600 - 1)


async def test_expired_sessions_networks_counts_and_events_are_purged(
    user: Account, connection: AsyncConnection, database: Database, settings: Settings, clock: Clock
) -> None:
    async def count(model: type[Base]) -> object:
        return await connection.scalar(select(func.count()).select_from(model))

    purges = [feature.purge for feature in FEATURES if feature.purge]
    short_lived = settings.model_copy(update={"audit_log_lifetime_seconds": 24 * 3600, "throttle_memory_seconds": 0})
    old = {"event": "old", "device": "", "details": {}, "created_at": utc_now() - timedelta(days=1)}
    await connection.execute(insert(AuditEvent).values(old))
    await connection.execute(insert(ThrottleCount).values(key="x", attempts=1, delay_seconds=0, last_at=clock.now))
    tables = (UserSession, KnownNetwork, ThrottleCount)

    nothing = await purge(database, settings, purges)
    present = [await count(table) for table in tables]
    await connection.execute(update(UserSession).values(expires_at=utc_now()))
    await connection.execute(update(KnownNetwork).values(last_used_at=utc_now() - timedelta(days=91)))
    something = await purge(database, short_lived, purges)

    assert nothing == 0
    assert 0 not in present
    assert something > len(tables)
    assert [await count(table) for table in tables] == [0] * len(tables)
    left = (await connection.scalars(select(AuditEvent.event))).all()
    assert "user.created" in left
    assert "old" not in left


async def test_failing_purge_does_not_stop_the_other_purges(
    database: Database, settings: Settings, logs: io.StringIO
) -> None:
    left = [2, 1, 0]

    async def fail(_session: Session, _settings: Settings) -> int:
        raise KeyError("of a bug")

    async def purge_some(_session: Session, _settings: Settings) -> int:
        return left.pop(0)

    with pytest.raises(KeyError):
        await purge(database, settings, [fail, purge_some])

    assert left == []
    assert "of a bug" in logs.getvalue()


async def test_the_service_purges_by_itself(live_url: str) -> None:
    settings = make_settings(live_url, purge_interval_seconds=1)
    old = f"'{uuid4().hex}', 'old', '', '[]', '2020-01-01 00:00:00+00:00'"
    async with open_client(create_app(settings)):
        columns = "id, event, device, details, created_at"
        await execute_async(live_url, f"INSERT INTO audit_events ({columns}) VALUES ({old})")  # noqa: S608  # the values are constants of this test
        deadline = time.monotonic() + 30
        while await execute_async(live_url, "SELECT count(*) FROM audit_events") != [(0,)]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
