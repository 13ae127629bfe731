"""E-mails that notify the owner of an account, and their limits."""

import io
from collections.abc import Awaitable, Callable

import httpx2
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.commands import deactivate_user, remove_second_factor
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.outbox.models import OutgoingEmail
from tests.support.accounts import Account, confirmed, create_account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.clock import Clock
from tests.support.databases import PRODUCTION, execute_async, make_settings
from tests.support.mail import Mailbox
from tests.support.second_factor import PATH, PROOF, enable, show_code

ME = "/api/v1/users/me"
USERS = "/api/v1/users"


async def read_subjects(mailbox: Mailbox, address: str) -> list[str]:
    return [message["Subject"].partition(": ")[2] for message in await mailbox.read(address)]


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"email": "new@example.com"}, "your e-mail address was changed"),
        ({"is_admin": True}, "you are an administrator now"),
        ({"is_active": False}, "your account was deactivated"),
        (None, "your account was deleted"),
    ],
)
async def test_owner_is_notified_at_old_address_of_changes_by_administrator(
    client: httpx2.AsyncClient,
    user: Account,
    admin: Account,
    mailbox: Mailbox,
    change: dict[str, object] | None,
    subject: str,
) -> None:
    headers = await confirmed(client, admin)
    method = "DELETE" if change is None else "PATCH"

    await client.request(method, f"{USERS}/{user.id}", json=change, headers=headers)

    assert await read_subjects(mailbox, user.email) == [subject]


async def test_owner_is_notified_when_change_by_administrator_is_reverted(
    client: httpx2.AsyncClient, user: Account, admin: Account, mailbox: Mailbox
) -> None:
    for change in ({"is_admin": True, "is_active": False}, {"is_admin": False, "is_active": True}, {"name": "Ada"}):
        await client.patch(f"{USERS}/{user.id}", json=change, headers=await confirmed(client, admin))

    assert sorted(await read_subjects(mailbox, user.email)) == [
        "you are an administrator now",
        "you are no longer an administrator",
        "your account was activated again",
        "your account was deactivated",
    ]


async def test_owner_is_notified_when_second_factor_is_switched_on_or_off(
    client: httpx2.AsyncClient, user: Account, mailbox: Mailbox, clock: Clock
) -> None:
    secret, _ = await enable(client, user)
    clock.now += 30
    await client.post(f"{PATH}/disable", json={**PROOF, "otp": show_code(secret, clock.now)}, headers=user.headers)

    assert await read_subjects(mailbox, user.email) == [
        "your second factor was switched on",
        "your second factor was switched off",
    ]


@pytest.mark.parametrize("command", [deactivate_user, remove_second_factor])
async def test_owner_is_notified_of_changes_by_operator(
    live_url: str, command: Callable[[Settings, str], Awaitable[None]], clock: Clock
) -> None:
    settings = make_settings(live_url)
    # The application ends before the command runs, so that its sender does not take the notice from the queue.
    async with open_client(create_app(settings, clock=clock)) as client:
        user = await create_account(client)
        await enable(client, user)
    await execute_async(live_url, "DELETE FROM outgoing_emails")

    await command(settings, user.email)

    queued = await execute_async(live_url, "SELECT address, kind FROM outgoing_emails")
    assert queued == [(user.email, "account changed")]


async def test_without_mail_server_no_message_is_queued(
    migrated_url: str, database: Database, connection: AsyncConnection
) -> None:
    settings = make_settings(
        migrated_url,
        **PRODUCTION,
    )
    async with open_client(create_app(settings, database)) as client:
        user = await create_account(client)
        deleted = await client.delete(ME, headers=await confirmed(client, user))

    assert deleted.status_code == 204
    assert await connection.scalar(select(func.count()).select_from(OutgoingEmail)) == 0


@pytest.mark.usefixtures("clock")
async def test_notices_are_limited_separately_for_each_kind_of_change(
    migrated_url: str, database: Database, mailbox: Mailbox, logs: io.StringIO
) -> None:
    def count_dropped() -> float:
        return REGISTRY.get_sample_value("emails_total", {"outcome": "dropped"}) or 0

    settings = make_settings(migrated_url, throttling=True, throttle_account_attempts=3)
    dropped = count_dropped()
    async with open_client(create_app(settings, database)) as client:
        user, admin = await create_account(client), await create_account(client, database, is_admin=True)
        for is_admin in [True, False] * 6:
            change = {"is_admin": is_admin}
            answer = await client.patch(f"{USERS}/{user.id}", json=change, headers=await confirmed(client, admin))
            assert answer.status_code == 200
        await client.delete(f"{USERS}/{user.id}", headers=await confirmed(client, admin))

    subjects = await read_subjects(mailbox, user.email)
    assert subjects.count("you are an administrator now") == 3
    assert subjects.count("you are no longer an administrator") == 3
    assert subjects[-1] == "your account was deleted"
    assert count_dropped() - dropped == 6
    assert "e-mail dropped" in logs.getvalue()


@pytest.mark.usefixtures("clock")
async def test_messages_to_new_addresses_are_limited_for_each_account(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, throttling=True, throttle_account_attempts=3)
    async with open_client(create_app(settings, database)) as client:
        user = await create_account(client)
        statuses = [
            (
                await client.post(f"{ME}/email", json={**PROOF, "new_email": f"{n}@example.com"}, headers=user.headers)
            ).status_code
            for n in range(4)
        ]

    assert statuses == [202, 202, 202, 429]
