import asyncio

import httpx2
import pytest
from sqlalchemy import text

from app.core.db.session import Database
from tests.support.accounts import PASSWORD, Account, create_account, new_address
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import execute_async, make_settings, migrate
from tests.support.mail import MailServer, find_token, wait_for
from tests.support.recovery import API, NEW_PASSWORD, Postman, can_sign_in, post
from tests.support.timing import share_of_slower


async def test_forgotten_password_can_be_reset(client: httpx2.AsyncClient, user: Account, postman: Postman) -> None:
    asked = await post(client, "/auth/password/forgot", email=user.email.upper())
    token = await postman.read_token(user.email)
    reset = await post(client, "/auth/password/reset", token=token, new_password=NEW_PASSWORD)

    assert (asked.status_code, asked.content) == (202, b"")
    assert reset.status_code == 204
    assert (await client.get(f"{API}/users/me", headers=user.headers)).status_code == 401
    assert not await can_sign_in(client, user.email, PASSWORD)
    assert await can_sign_in(client, user.email, NEW_PASSWORD)
    assert "was changed" in (await postman.read(user.email))[-1]["Subject"]


@pytest.mark.parametrize("path", ["/auth/password/forgot", "/auth/email/verification"])
async def test_response_does_not_reveal_whether_account_exists(
    client: httpx2.AsyncClient, user: Account, postman: Postman, mail: MailServer, path: str
) -> None:
    known = await post(client, path, email=user.email)
    unknown = await post(client, path, email="nobody@example.com")
    await postman.deliver()

    assert (known.status_code, known.content) == (unknown.status_code, unknown.content)
    assert known.headers.keys() == unknown.headers.keys()
    assert mail.attempts == [user.email]


async def test_a_deactivated_account_gets_no_mail(
    client: httpx2.AsyncClient, user: Account, postman: Postman, mail: MailServer, database: Database
) -> None:
    async with database.write() as session:
        await session.execute(text("UPDATE users SET is_active = false"))

    await post(client, "/auth/password/forgot", email=user.email)
    await postman.deliver()

    assert mail.attempts == []


async def test_response_time_does_not_reveal_whether_account_exists(client: httpx2.AsyncClient, user: Account) -> None:
    async def ask(email: str) -> None:
        await post(client, "/auth/password/forgot", email=email)

    assert 0.1 < await share_of_slower(lambda: ask(user.email), lambda: ask(new_address())) < 0.9


async def test_concurrent_resets_with_same_code_succeed_only_once(empty_url: str, mail: MailServer) -> None:
    await asyncio.to_thread(migrate, empty_url)
    settings = make_settings(empty_url, **mail.settings, database_pool_size=5, password_hash_concurrency=4)
    async with open_client(create_app(settings)) as client:
        user = await create_account(client)
        await post(client, "/auth/password/forgot", email=user.email)
        await wait_for(lambda: mail.to(user.email))
        token = find_token(mail.to(user.email)[0])
        resets = await asyncio.gather(
            *(post(client, "/auth/password/reset", token=token, new_password=f"{NEW_PASSWORD} {n}") for n in range(4))
        )
        signed_in = [await can_sign_in(client, user.email, f"{NEW_PASSWORD} {n}") for n in range(4)]
        await wait_for(lambda: len(mail.to(user.email)) == 2)

    statuses = [reset.status_code for reset in resets]
    assert sorted(statuses) == [204, 422, 422, 422]
    assert signed_in == [status == 204 for status in statuses]
    assert await execute_async(empty_url, "SELECT 1 FROM one_time_tokens") == []
