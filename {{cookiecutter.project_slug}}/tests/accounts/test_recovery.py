"""Accounts by mail, end to end: what arrives at a real mail server is what the next request is made with."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from email.message import EmailMessage
from uuid import UUID, uuid4

import httpx2
import pytest
from sqlalchemy import text

from app.accounts import one_time_tokens
from app.accounts.emails import EmailKind, Purpose
from app.application import email_renderers
from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.session import Database, Session, open_database
from app.core.security.tokens import hash_opaque_token
from app.outbox.sender import Sender
from app.outbox.service import EmailRecord
from tests.support.accounts import PASSWORD, Account, confirmed, create_account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import execute_async, make_settings, migrate
from tests.support.mail import MailServer, find_token, run_mail_server, wait_for

API = "/api/v1"
NEW_PASSWORD = "another horse and another staple"
ROUNDS = 60


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with run_mail_server() as mail:
        yield mail


@pytest.fixture
def settings(migrated_url: str, mail: MailServer) -> Settings:
    return make_settings(migrated_url, **mail.settings)


class Postman:
    def __init__(self, mail: MailServer, settings: Settings, database: Database) -> None:
        self._mail = mail
        # One at a time: the test has one connection, whose transaction is rolled back in the end.
        self._sender = Sender(settings, database, email_renderers(), concurrency=1)

    async def deliver(self) -> None:
        while await self._sender.send_due():
            pass

    async def read(self, address: str) -> list[EmailMessage]:
        await self.deliver()
        return self._mail.to(address)

    async def read_token(self, address: str) -> str:
        return find_token((await self.read(address))[-1])


@pytest.fixture
def postman(mail: MailServer, settings: Settings, database: Database) -> Postman:
    return Postman(mail, settings, database)


def new_address() -> str:
    return f"{uuid4().hex}@example.com"


async def post(client: httpx2.AsyncClient, path: str, **body: str) -> httpx2.Response:
    return await client.post(f"{API}{path}", json=body)


async def can_sign_in(client: httpx2.AsyncClient, email: str, password: str) -> bool:
    return (await request_token(client, username=email, password=password)).status_code == 200


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
    # To verify an address ends what else was under way.
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


async def test_verified_address_gets_no_further_verification_message(
    client: httpx2.AsyncClient, user: Account, postman: Postman
) -> None:
    before = (await client.get(f"{API}/users/me", headers=user.headers)).json()["email_verified_at"]
    await post(client, "/auth/email/verification", email=user.email)

    token = await postman.read_token(user.email)
    verified = await post(client, "/auth/email/verify", token=token, password=PASSWORD)
    again = await post(client, "/auth/email/verification", email=user.email)

    assert before is None
    assert (verified.status_code, again.status_code) == (204, 202)
    assert (await client.get(f"{API}/users/me", headers=user.headers)).json()["email_verified_at"] is not None
    # There is nothing left to verify.
    assert len(await postman.read(user.email)) == 1


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


async def test_deactivation_revokes_all_codes(
    client: httpx2.AsyncClient, user: Account, admin: Account, postman: Postman, mail: MailServer
) -> None:
    await post(client, "/auth/password/forgot", email=user.email)
    sent = await postman.read_token(user.email)
    # These wait while the mail server is away.
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
        "your address is about to change",
    ]


async def test_deleting_account_removes_waiting_messages(
    client: httpx2.AsyncClient, user: Account, postman: Postman, database: Database
) -> None:
    await post(client, "/auth/password/forgot", email=user.email)
    await client.delete(f"{API}/users/me", headers=await confirmed(client, user))

    async with database.read() as session:
        waiting = (await session.execute(text("SELECT kind FROM outgoing_emails"))).all()
    assert waiting == [("account changed",)]


async def test_a_new_address_is_confirmed_there_and_announced_at_the_old_one(
    client: httpx2.AsyncClient, user: Account, postman: Postman
) -> None:
    new_email = new_address()
    body = {"new_email": new_email, "current_password": PASSWORD}
    asked = await client.post(f"{API}/users/me/email", json=body, headers=user.headers)
    token = await postman.read_token(new_email)
    announced = await postman.read(user.email)
    before = (await client.get(f"{API}/users/me", headers=user.headers)).json()["email"]
    confirmed = await post(client, "/auth/email/verify", token=token, password=PASSWORD)

    me = (await client.get(f"{API}/users/me", headers=user.headers)).json()
    assert (asked.status_code, confirmed.status_code) == (202, 204)
    assert before == user.email
    assert me["email"] == new_email
    assert me["email_verified_at"] is not None
    assert "about to change" in announced[-1]["Subject"]
    assert await can_sign_in(client, new_email, PASSWORD)
    assert not await can_sign_in(client, user.email, PASSWORD)


@pytest.mark.parametrize("is_sent", [True, False])
async def test_password_change_cancels_pending_change_of_address(
    client: httpx2.AsyncClient, user: Account, postman: Postman, mail: MailServer, is_sent: bool
) -> None:
    new_email = new_address()
    body = {"new_email": new_email, "current_password": PASSWORD}
    await client.post(f"{API}/users/me/email", json=body, headers=user.headers)
    if is_sent:
        await postman.deliver()
    change = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    await client.post(f"{API}/users/me/password", json=change, headers=user.headers)
    await postman.deliver()

    confirmed = [
        await post(client, "/auth/email/verify", token=find_token(message), password=PASSWORD)
        for message in mail.to(new_email)
    ]

    assert [answer.status_code for answer in confirmed] == [422] * is_sent
    assert len(mail.to(user.email)) == 2


async def ask_for_change(client: httpx2.AsyncClient, user: Account) -> str:
    new_email = new_address()
    body = {"new_email": new_email, "current_password": PASSWORD}
    asked = await client.post(f"{API}/users/me/email", json=body, headers=user.headers)
    assert asked.status_code == 202, asked.text
    return new_email


async def change_password(client: httpx2.AsyncClient, user: Account) -> None:
    body = {"current_password": PASSWORD, "new_password": NEW_PASSWORD}
    changed = await client.post(f"{API}/users/me/password", json=body, headers=user.headers)
    assert changed.status_code == 200, changed.text


async def test_change_of_address_cancelled_before_sending_sends_no_message(
    client: httpx2.AsyncClient, user: Account, postman: Postman, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Sender._send

    async def send_late(self: Sender, email: EmailRecord) -> None:
        if email.kind == EmailKind.EMAIL_CHANGE:
            await change_password(client, user)
        await send(self, email)

    monkeypatch.setattr(Sender, "_send", send_late)
    new_email = await ask_for_change(client, user)

    await postman.deliver()

    assert mail.to(new_email) == []
    assert len(mail.to(user.email)) == 2


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
        # The sender is at work meanwhile, where others can write.
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
    assert "your address was changed" in notice["Subject"]
    assert await execute_async(empty_url, "SELECT 1 FROM one_time_tokens") == []


async def test_change_of_address_is_refused_if_password_changes_meanwhile(
    client: httpx2.AsyncClient, user: Account, mail: MailServer, postman: Postman, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def limit_late(_tools: Context, _kind: EmailKind, _address: str, _account_id: UUID) -> None:
        await change_password(client, user)

    monkeypatch.setattr("app.accounts.recovery.service.commit_and_limit_messages", limit_late)
    body = {"new_email": new_address(), "current_password": PASSWORD}

    refused = await client.post(f"{API}/users/me/email", json=body, headers=user.headers)
    await postman.deliver()

    assert refused.status_code == 409
    assert mail.attempts == [user.email]


async def test_address_change_by_administrator_cancels_pending_change_of_address(
    client: httpx2.AsyncClient, user: Account, admin: Account, postman: Postman, mail: MailServer
) -> None:
    new_email = await ask_for_change(client, user)
    body = {"email": new_address()}

    changed = await client.patch(f"{API}/users/{user.id}", json=body, headers=await confirmed(client, admin))
    await postman.deliver()

    assert changed.status_code == 200
    assert mail.to(new_email) == []


async def test_verifying_current_address_cancels_pending_change_of_address(
    client: httpx2.AsyncClient, user: Account, postman: Postman, mail: MailServer
) -> None:
    await post(client, "/auth/email/verification", email=user.email)
    token = await postman.read_token(user.email)
    new_email = await ask_for_change(client, user)

    verified = await post(client, "/auth/email/verify", token=token, password=PASSWORD)
    await postman.deliver()

    assert verified.status_code == 204
    assert mail.to(new_email) == []


async def test_deleted_account_sends_no_message_to_new_address(
    client: httpx2.AsyncClient, user: Account, postman: Postman, mail: MailServer
) -> None:
    new_email = new_address()
    body = {"new_email": new_email, "current_password": PASSWORD}
    await client.post(f"{API}/users/me/email", json=body, headers=user.headers)
    await client.delete(f"{API}/users/me", headers=await confirmed(client, user))

    await postman.deliver()

    assert {*mail.attempts} == {user.email}


async def test_change_of_address_requires_the_password(
    client: httpx2.AsyncClient, user: Account, postman: Postman, mail: MailServer
) -> None:
    body = {"new_email": new_address(), "current_password": "wrong" * 4}

    refused = await client.post(f"{API}/users/me/email", json=body, headers=user.headers)
    await postman.deliver()

    assert refused.status_code == 422
    assert mail.attempts == []


async def test_change_to_taken_address_only_notifies_its_owner(
    client: httpx2.AsyncClient, user: Account, postman: Postman
) -> None:
    other = await create_account(client)
    body = {"new_email": other.email, "current_password": PASSWORD}

    asked = await client.post(f"{API}/users/me/email", json=body, headers=user.headers)

    assert asked.status_code == 202
    assert "already have an account" in (await postman.read(other.email))[-1]["Subject"]


async def test_change_to_address_taken_meanwhile_is_refused(
    client: httpx2.AsyncClient, user: Account, postman: Postman
) -> None:
    new_email = new_address()
    body = {"new_email": new_email, "current_password": PASSWORD}
    await client.post(f"{API}/users/me/email", json=body, headers=user.headers)
    token = await postman.read_token(new_email)
    await post(client, "/users", email=new_email, password=PASSWORD)

    confirmed = await post(client, "/auth/email/verify", token=token, password=PASSWORD)

    assert confirmed.status_code == 409
    assert (await client.get(f"{API}/users/me", headers=user.headers)).json()["email"] == user.email


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
        environment="production",
        allowed_hosts="localhost,example.com",
        secret_key="Zx81mQ0pLr7tVb3nHy6kWd9sJf2gCa5e",
    )
    async with open_client(create_app(settings, database)) as client:
        answer = await post(client, path, email="ada@example.com")

    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"


def describe(answer: httpx2.Response) -> dict[str, str]:
    """Return the problem document without the id of its request."""
    return {name: value for name, value in answer.json().items() if name != "request_id"}


class TestVerificationRequired:
    @pytest.fixture
    def settings(self, migrated_url: str, mail: MailServer) -> Settings:
        return make_settings(migrated_url, **mail.settings, email_verification_required=True)

    async def test_user_cannot_sign_in_before_address_is_verified(
        self, client: httpx2.AsyncClient, postman: Postman
    ) -> None:
        email = new_address()
        created = await post(client, "/users", email=email, password=PASSWORD)
        early = await request_token(client, username=email, password=PASSWORD)
        guessed = await request_token(client, username=email, password="wrong" * 4)
        token = await postman.read_token(email)
        verified = await post(client, "/auth/email/verify", token=token, password=PASSWORD)

        assert (created.status_code, created.content) == (202, b"")
        assert early.status_code == 400
        assert early.json()["error"] == "invalid_grant"
        assert "not verified" in early.json()["error_description"]
        assert early.json() == guessed.json()
        assert verified.status_code == 204
        assert await can_sign_in(client, email, PASSWORD)

    async def test_sign_up_does_not_reveal_whether_account_exists(
        self, client: httpx2.AsyncClient, postman: Postman
    ) -> None:
        email = new_address()
        new = await post(client, "/users", email=email, password=PASSWORD)
        token = await postman.read_token(email)
        again = await post(client, "/users", email=email, password=NEW_PASSWORD)
        unverified = await postman.read(email)
        await post(client, "/auth/email/verify", token=token, password=PASSWORD)
        taken = await post(client, "/users", email=email, password=NEW_PASSWORD)

        messages = await postman.read(email)
        assert (again.status_code, again.content) == (202, b"")
        assert [message["Subject"] for message in unverified] == [unverified[0]["Subject"]] * 2
        assert (new.status_code, new.content) == (taken.status_code, taken.content) == (202, b"")
        assert new.headers.keys() == taken.headers.keys()
        assert "already have an account" in messages[-1]["Subject"]
        assert await can_sign_in(client, email, PASSWORD)
        assert not await can_sign_in(client, email, NEW_PASSWORD)

    @pytest.mark.parametrize("is_verified", [True, False])
    @pytest.mark.usefixtures("clock")
    async def test_sign_in_after_sign_up_does_not_reveal_whether_account_exists(
        self, settings: Settings, database: Database, postman: Postman, is_verified: bool
    ) -> None:
        throttled = settings.model_copy(update={"throttling": True, "throttle_account_attempts": 2})
        taken, free = new_address(), new_address()
        async with open_client(create_app(throttled, database), address="192.0.2.1") as owner:
            await post(owner, "/users", email=taken, password=PASSWORD)
            if is_verified:
                token = await postman.read_token(taken)
                await post(owner, "/auth/email/verify", token=token, password=PASSWORD)

        answers = {}
        async with open_client(create_app(throttled, database), address="198.51.100.7") as stranger:
            for email in (taken, free):
                await post(stranger, "/users", email=email, password=NEW_PASSWORD)
                attempts = [await request_token(stranger, username=email, password=NEW_PASSWORD) for _ in range(4)]
                answers[email] = [
                    (each.status_code, each.headers.get("retry-after"), describe(each)) for each in attempts
                ]

        assert answers[taken] == answers[free]
        assert [status for status, *_ in answers[free]] == [400, 400, 429, 429]

    async def test_password_reset_also_verifies_the_address(self, client: httpx2.AsyncClient, postman: Postman) -> None:
        email = new_address()
        await post(client, "/users", email=email, password=PASSWORD)
        await post(client, "/auth/password/forgot", email=email)

        tokens = [find_token(message) for message in await postman.read(email)]
        await post(client, "/auth/password/reset", token=tokens[-1], new_password=NEW_PASSWORD)

        assert await can_sign_in(client, email, NEW_PASSWORD)

    async def test_response_time_of_sign_up_does_not_reveal_whether_account_exists(
        self, client: httpx2.AsyncClient
    ) -> None:
        taken = new_address()
        await post(client, "/users", email=taken, password=PASSWORD)

        async def sign_up(email: str) -> None:
            await post(client, "/users", email=email, password=PASSWORD)

        share = await share_of_slower(lambda: sign_up(taken), lambda: sign_up(new_address()))
        assert 0.1 < share < 0.9


async def test_response_time_does_not_reveal_whether_account_exists(client: httpx2.AsyncClient, user: Account) -> None:
    async def ask(email: str) -> None:
        await post(client, "/auth/password/forgot", email=email)

    assert 0.1 < await share_of_slower(lambda: ask(user.email), lambda: ask(new_address())) < 0.9


async def share_of_slower(one: Callable[[], Awaitable[None]], other: Callable[[], Awaitable[None]]) -> float:
    """Return how often the first is the slower one of a pair.

    Other load affects both equally: without a difference, a share of one in ten has a probability below 1e-6.
    """
    slower = 0
    for number in range(ROUNDS):
        seconds = {}
        for act in (one, other) if number % 2 else (other, one):
            started = time.perf_counter()
            await act()
            seconds[act] = time.perf_counter() - started
        slower += seconds[one] > seconds[other]
    return slower / ROUNDS


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
