from uuid import UUID

import httpx2
import pytest

from app.accounts.emails import EmailKind
from app.core.context import Context
from app.outbox.sender import Sender
from app.outbox.service import EmailRecord
from tests.support.accounts import PASSWORD, Account, confirmed, create_account, new_address
from tests.support.mail import MailServer, find_token
from tests.support.recovery import API, NEW_PASSWORD, Postman, ask_for_change, can_sign_in, change_password, post


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
