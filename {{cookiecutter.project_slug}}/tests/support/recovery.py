"""The actions of a user who gets codes by mail, and the delivery of these messages to a real mail server."""

from email.message import EmailMessage

import httpx2

from app.application import email_renderers
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.outbox.sender import Sender
from tests.support.accounts import PASSWORD, Account, new_address, request_token
from tests.support.mail import MailServer, find_token

API = "/api/v1"
NEW_PASSWORD = "another horse and another staple"


class Postman:
    def __init__(self, mail: MailServer, settings: Settings, database: Database) -> None:
        self._mail = mail
        # Sends one message at a time, because the test has only one database connection, whose transaction is rolled
        # back at the end.
        self._sender = Sender(settings, database, email_renderers(), concurrency=1)

    async def deliver(self) -> None:
        while await self._sender.send_due():
            pass

    async def read(self, address: str) -> list[EmailMessage]:
        await self.deliver()
        return self._mail.to(address)

    async def read_token(self, address: str) -> str:
        return find_token((await self.read(address))[-1])


async def post(client: httpx2.AsyncClient, path: str, **body: str) -> httpx2.Response:
    return await client.post(f"{API}{path}", json=body)


async def can_sign_in(client: httpx2.AsyncClient, email: str, password: str) -> bool:
    return (await request_token(client, username=email, password=password)).status_code == 200


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
