"""Transactions lock the same rows in the same order: otherwise they could deadlock, and PostgreSQL would abort one."""

import asyncio
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import make_url, text

from app.accounts import one_time_tokens
from app.accounts.emails import LIFETIMES, EmailKind, Purpose
from app.core.config.settings import Settings
from app.core.db.session import Database, open_database
from app.core.security.hashing import PasswordCheck, PasswordHasher
from app.core.security.throttling import AttemptCounter
from app.outbox import service as outbox_service
from tests.support.accounts import PASSWORD, create_account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import execute_async, make_settings

ADDRESS = "127.0.0.1"
BLOCKED = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
"""
LOCK_COUNT = text("UPDATE throttle_counts SET attempts = attempts WHERE key = :key")
REQUESTS = {
    Purpose.RESET_PASSWORD: ("/api/v1/auth/password/reset", {"new_password": "another horse and another staple"}),
    Purpose.VERIFY_EMAIL: ("/api/v1/auth/email/verify", {"password": PASSWORD}),
}


def is_postgresql(url: str) -> bool:
    return make_url(url).get_backend_name() == "postgresql"


async def somebody_is_blocked(url: str) -> None:
    """Return when a transaction waits for a row lock; return at once on SQLite, which has no row locks."""
    while is_postgresql(url) and await execute_async(url, BLOCKED) == [(0,)]:  # noqa: ASYNC110  # the database sends no event for it
        await asyncio.sleep(0.05)


async def test_concurrent_sign_ins_lock_attempt_counts_in_the_same_order(
    live_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(live_url, throttling=True)
    check_password, is_locked = PasswordHasher.verify, asyncio.Event()
    async with open_client(create_app(settings)) as client, open_database(settings) as other:
        user = await create_account(client)
        own = AttemptCounter("sign-in from known network", f"{user.email} {ADDRESS}", 1)
        shared = AttemptCounter("sign-in from address", ADDRESS, 1)
        async with other.write() as another:

            async def check_and_lock(
                passwords: PasswordHasher, password: str, password_hash: str | None
            ) -> PasswordCheck:
                check = await check_password(passwords, password, password_hash)
                # Act as a concurrent sign-in that locks the same counts while this password is checked: the account's
                # count here, and the address's count later in this test.
                await another.execute(LOCK_COUNT, {"key": own.key})
                is_locked.set()
                return check

            monkeypatch.setattr(PasswordHasher, "verify", check_and_lock)
            signing_in = asyncio.create_task(request_token(client, username=user.email, password=user.password))
            await is_locked.wait()
            await somebody_is_blocked(live_url)
            await another.execute(LOCK_COUNT, {"key": shared.key})
        answer = await signing_in

    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("purpose", REQUESTS)
async def test_code_revoked_by_concurrent_password_change_is_refused(live_url: str, purpose: Purpose) -> None:
    settings = make_settings(live_url)
    path, values = REQUESTS[purpose]
    async with open_client(create_app(settings)) as client, open_database(settings) as other:
        user = await create_account(client)
        token = await make_token(other, purpose, user.id, user.email)
        answer = await use_while_the_user_is_changed(client, settings, other, path, {"token": token, **values})

    assert answer.status_code == 422, answer.text


async def make_token(database: Database, purpose: Purpose, user_id: str, email: str) -> str:
    async with database.write() as session:
        return await one_time_tokens.create_token(session, purpose, UUID(user_id), email, lifetime=LIFETIMES[purpose])


async def use_while_the_user_is_changed(
    client: httpx2.AsyncClient, settings: Settings, other: Database, path: str, values: dict[str, str]
) -> httpx2.Response:
    async with other.write() as another:
        # Change the rows in the order of a password change: first the user, then every code.
        await another.execute(text("UPDATE users SET name = 'x'"))
        using = asyncio.create_task(client.post(path, json=values))
        await somebody_is_blocked(settings.url.render_as_string(hide_password=False))
        await another.execute(text("DELETE FROM one_time_tokens"))
    return await using


async def test_address_confirmation_during_password_change_is_refused(live_url: str) -> None:
    settings = make_settings(live_url)
    async with open_client(create_app(settings)) as client, open_database(settings) as other:
        user = await create_account(client)
        async with other.write() as session:
            await outbox_service.enqueue(session, EmailKind.EMAIL_CHANGE, "new@example.com", UUID(user.id))
        token = await make_token(other, Purpose.CHANGE_EMAIL, user.id, "new@example.com")
        async with other.write() as another:
            # Change the rows in the order of a password change: first the user, then the queued e-mails, then every
            # code.
            await another.execute(text("UPDATE users SET name = 'x'"))
            confirming = asyncio.create_task(
                client.post("/api/v1/auth/email/verify", json={"token": token, "password": PASSWORD})
            )
            await somebody_is_blocked(live_url)
            await another.execute(text("DELETE FROM outgoing_emails"))
            await another.execute(text("DELETE FROM one_time_tokens"))
        answer = await confirming

    assert answer.status_code == 422, answer.text


async def test_second_factor_setup_during_account_deletion_is_refused(live_url: str) -> None:
    settings = make_settings(live_url)
    path, body = "/api/v1/auth/second-factor", {"current_password": PASSWORD}
    async with open_client(create_app(settings)) as client, open_database(settings) as other:
        user = await create_account(client)
        begun = await client.post(path, json=body, headers=user.headers)
        async with other.write() as another:
            await another.execute(
                text("SELECT id FROM users FOR UPDATE" if is_postgresql(live_url) else "DELETE FROM one_time_tokens")
            )
            beginning = asyncio.create_task(client.post(path, json=body, headers=user.headers))
            await somebody_is_blocked(live_url)
            await another.execute(text("DELETE FROM users"))
        answer = await beginning

    assert begun.status_code == 200, begun.text
    assert answer.status_code in (401, 409, 422), answer.text
