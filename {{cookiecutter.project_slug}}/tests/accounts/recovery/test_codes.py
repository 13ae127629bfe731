"""Codes sent by mail, for all purposes."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import httpx2
import pytest
from sqlalchemy import text

from app.accounts import one_time_tokens
from app.accounts.emails import Purpose
from app.core.config.settings import Settings
from app.core.db.session import Database, Session, open_database
from app.core.security.tokens import hash_opaque_token
from tests.support.accounts import PASSWORD, Account, confirmed, create_account, new_address
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import PRODUCTION, execute_async, make_settings, migrate
from tests.support.mail import MailServer, find_token, wait_for
from tests.support.recovery import API, NEW_PASSWORD, Postman, ask_for_change, can_sign_in, change_password, post


async def test_a_code_works_once(client: httpx2.AsyncClient, user: Account, postman: Postman) -> None:
    await post(client, "/auth/password/forgot", email=user.email)
    token = await postman.read_token(user.email)

    first = await post(client, "/auth/password/reset", token=token, new_password=NEW_PASSWORD)
    second = await post(client, "/auth/password/reset", token=token, new_password=PASSWORD)

    assert (first.status_code, second.status_code) == (204, 422)
    assert second.json()["code"] == "invalid-code"
    assert await can_sign_in(client, user.email, NEW_PASSWORD)


@pytest.mark.parametrize(
    "typed",
    [
        lambda code: f" {code}\n",
        lambda code: f"{code[:20]}\r\n {code[20:]}",
        lambda code: f"{code[:20]}\N{ZERO WIDTH SPACE}{code[20:]}",
        lambda code: code.replace("-", "\N{NON-BREAKING HYPHEN}"),
        lambda code: "".join(chr(ord(character) + 0xFEE0) for character in code),
    ],
)
async def test_code_copied_with_spaces_or_unusual_characters_is_accepted(
    client: httpx2.AsyncClient, user: Account, database: Database, typed: Callable[[str], str]
) -> None:
    async with database.write() as session:
        code = await one_time_tokens.create_token(
            session, Purpose.RESET_PASSWORD, UUID(user.id), user.email, lifetime=timedelta(hours=1)
        )

    reset = await post(client, "/auth/password/reset", token=typed(code), new_password=NEW_PASSWORD)

    assert reset.status_code == 204


async def test_a_code_expires(client: httpx2.AsyncClient, user: Account, postman: Postman, database: Database) -> None:
    await post(client, "/auth/password/forgot", email=user.email)
    token = await postman.read_token(user.email)
    async with database.write() as session:
        await session.execute(text("UPDATE one_time_tokens SET expires_at = '2020-01-01 00:00:00+00:00'"))

    late = await post(client, "/auth/password/reset", token=token, new_password=NEW_PASSWORD)

    assert late.status_code == 422
    assert await can_sign_in(client, user.email, PASSWORD)


async def test_code_works_only_for_its_purpose(client: httpx2.AsyncClient, user: Account, postman: Postman) -> None:
    await post(client, "/auth/password/forgot", email=user.email)
    reset_token = await postman.read_token(user.email)
    await post(client, "/auth/email/verification", email=user.email)
    verification_token = await postman.read_token(user.email)

    answers = [
        await post(client, "/auth/email/verify", token=reset_token),
        await post(client, "/auth/password/reset", token=verification_token, new_password=NEW_PASSWORD),
        await post(client, "/auth/password/reset", token="x" * 43, new_password=NEW_PASSWORD),
        await post(client, "/auth/email/verify", token=user.refresh_token),
    ]
    verified = await post(client, "/auth/email/verify", token=verification_token, password=PASSWORD)
    reset = await post(client, "/auth/password/reset", token=reset_token, new_password=NEW_PASSWORD)

    assert [answer.status_code for answer in answers] == [422] * 4
    assert verified.status_code == 204
    # The verification of the address has revoked the code of the password reset.
    assert reset.status_code == 422


async def test_a_changed_password_makes_older_codes_worthless(
    client: httpx2.AsyncClient, user: Account, postman: Postman
) -> None:
    await post(client, "/auth/password/forgot", email=user.email)
    token = await postman.read_token(user.email)
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    changed = await client.post(f"{API}/users/me/password", json=body, headers=user.headers)

    reset = await post(client, "/auth/password/reset", token=token, new_password=PASSWORD)

    assert changed.status_code == 200
    assert reset.status_code == 422
    assert "was changed" in (await postman.read(user.email))[-1]["Subject"]


async def test_code_is_stored_only_as_hash(
    client: httpx2.AsyncClient, user: Account, postman: Postman, database: Database
) -> None:
    await post(client, "/auth/password/forgot", email=user.email)
    async with database.read() as session:
        queued = (await session.execute(text("SELECT * FROM outgoing_emails"))).all()
        early = (await session.execute(text("SELECT * FROM one_time_tokens"))).all()

    token = await postman.read_token(user.email)

    async with database.read() as session:
        rows = (await session.execute(text("SELECT * FROM one_time_tokens"))).all()
        left = (await session.execute(text("SELECT * FROM outgoing_emails"))).all()
    assert len(queued) == 1
    assert early == left == []
    assert hash_opaque_token(token) in str(rows)
    assert token not in str(rows)


async def test_deactivation_revokes_all_codes(
    client: httpx2.AsyncClient, user: Account, admin: Account, postman: Postman, mail: MailServer
) -> None:
    await post(client, "/auth/password/forgot", email=user.email)
    sent = await postman.read_token(user.email)
    # Nothing delivers the messages of these requests before the account is deactivated.
    await post(client, "/auth/password/forgot", email=user.email)
    await post(client, "/auth/email/verification", email=user.email)
    new_email = await ask_for_change(client, user)

    for is_active in (False, True):
        body = {"is_active": is_active}
        await client.patch(f"{API}/users/{user.id}", json=body, headers=await confirmed(client, admin))
    reset = await post(client, "/auth/password/reset", token=sent, new_password=NEW_PASSWORD)
    await postman.deliver()

    assert reset.status_code == 422
    assert mail.to(new_email) == []
    subjects = [message["Subject"].partition(": ")[2] for message in mail.to(user.email)]
    assert subjects[0] == "set a new password"
    assert sorted(subjects[1:]) == [
        "your account was activated again",
        "your account was deactivated",
        "your e-mail address is about to change",
    ]


async def test_deleting_account_removes_waiting_messages(
    client: httpx2.AsyncClient, user: Account, postman: Postman, database: Database
) -> None:
    await post(client, "/auth/password/forgot", email=user.email)
    await client.delete(f"{API}/users/me", headers=await confirmed(client, user))

    async with database.read() as session:
        waiting = (await session.execute(text("SELECT kind FROM outgoing_emails"))).all()
    assert waiting == [("account changed",)]


async def test_password_change_revokes_code_that_is_being_created(
    empty_url: str, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(migrate, empty_url)
    create_token = one_time_tokens.create_token
    changes: list[asyncio.Task[None]] = []

    async def create_slowly(
        session: Session, purpose: str, user_id: UUID, address: str, *, lifetime: timedelta, payload: None
    ) -> str:
        token = await create_token(session, purpose, user_id, address, lifetime=lifetime, payload=payload)
        changes.append(asyncio.create_task(change_password(client, user)))
        await asyncio.wait(changes, timeout=1)
        return token

    monkeypatch.setattr("app.accounts.one_time_tokens.create_token", create_slowly)
    async with open_client(create_app(make_settings(empty_url, **mail.settings, database_pool_size=5))) as client:
        user = await create_account(client)
        new_email = await ask_for_change(client, user)
        await wait_for(lambda: mail.to(new_email))
        await asyncio.gather(*changes)
        confirmed = await post(client, "/auth/email/verify", token=find_token(mail.to(new_email)[0]), password=PASSWORD)

    assert confirmed.status_code == 422
    assert await execute_async(empty_url, "SELECT 1 FROM one_time_tokens") == []


async def test_an_address_that_is_being_replaced_gets_no_code(
    empty_url: str, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(migrate, empty_url)
    settings = make_settings(empty_url, **mail.settings, database_pool_size=5)
    revoke_tokens = one_time_tokens.revoke_tokens
    asked: list[asyncio.Task[httpx2.Response]] = []

    async def revoke_late(session: Session, user_id: UUID) -> None:
        asked.append(asyncio.create_task(post(client, "/auth/password/forgot", email=user.email)))
        await asyncio.wait(asked, timeout=1)
        # Give the sender of e-mails time to run: PostgreSQL lets it write during this transaction, SQLite does not.
        await asyncio.sleep(0.5)
        await revoke_tokens(session, user_id)

    async def is_sent() -> bool:
        return not await execute_async(empty_url, "SELECT 1 FROM outgoing_emails")

    monkeypatch.setattr("app.accounts.one_time_tokens.revoke_tokens", revoke_late)
    async with open_client(create_app(settings)) as client, open_database(settings) as database:
        admin, user = await create_account(client, database, is_admin=True), await create_account(client)
        body = {"email": new_address()}
        changed = await client.patch(f"{API}/users/{user.id}", json=body, headers=await confirmed(client, admin))
        answers = await asyncio.gather(*asked)
        await wait_for(is_sent)

    assert [changed.status_code, *(answer.status_code for answer in answers)] == [200, 202]
    (notice,) = mail.to(user.email)
    assert "your e-mail address was changed" in notice["Subject"]
    assert await execute_async(empty_url, "SELECT 1 FROM one_time_tokens") == []


async def test_a_link_leads_to_the_pages_of_the_application(
    client: httpx2.AsyncClient, user: Account, mail: MailServer, settings: Settings, database: Database
) -> None:
    linking = settings.model_copy(update={"account_pages_url": "https://app.example.com/account/"})
    await post(client, "/auth/password/forgot", email=user.email)

    message = (await Postman(mail, linking, database).read(user.email))[-1]

    token = find_token(message)
    html = message.get_body(("html",))
    assert html is not None
    assert f'href="https://app.example.com/account/reset-password#token={token}"' in html.get_content()


@pytest.mark.parametrize("path", ["/auth/password/forgot", "/auth/email/verification"])
async def test_production_without_mail_server_refuses_to_send_codes(
    migrated_url: str, database: Database, path: str
) -> None:
    settings = make_settings(
        migrated_url,
        **PRODUCTION,
    )
    async with open_client(create_app(settings, database)) as client:
        answer = await post(client, path, email="ada@example.com")

    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
