"""A browser without JavaScript: keeps cookies, follows redirects and sends forms."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser

import httpx2
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.audit.models import AuditEvent
from tests.support.accounts import PASSWORD
from tests.support.clients import open_client

ORIGIN = "https://localhost"
EMAIL = "ada@example.com"


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[tuple[str, dict[str, str]]] = []
        self._area: str | None = None
        self._select: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append((values["action"], {}))
        elif tag == "textarea":
            self._area = values["name"]
            self.forms[-1][1][self._area] = ""
        elif tag == "select":
            self._select = values["name"]
        elif tag == "option" and self._select is not None:
            # Without a selected option, the first one is sent.
            fields = self.forms[-1][1]
            if "selected" in values or self._select not in fields:
                fields[self._select] = values["value"]
        elif (
            tag == "input"
            and "name" in values
            and "disabled" not in values
            and (values.get("type") != "checkbox" or "checked" in values)
        ):
            self.forms[-1][1][values["name"]] = values.get("value", "on")

    def handle_data(self, data: str) -> None:
        if self._area is not None:
            # The first line break after the tag is not part of the text.
            self.forms[-1][1][self._area] += data.removeprefix("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._area = None


class Browser:
    def __init__(self, client: httpx2.AsyncClient) -> None:
        self.client = client
        client.headers["Accept"] = "text/html,application/xhtml+xml,*/*;q=0.8"
        client.follow_redirects = True
        self.page = httpx2.Response(204)

    @property
    def text(self) -> str:
        return self.page.text

    @property
    def path(self) -> str:
        return self.page.url.path

    async def open(self, path: str) -> httpx2.Response:
        self.page = await self.client.get(path)
        return self.page

    def find_form(self, action: str) -> dict[str, str]:
        parser = _Forms()
        parser.feed(self.text)
        return next(fields for target, fields in parser.forms if target == action)

    async def send(self, action: str, **fields: str) -> httpx2.Response:
        """Fill in the form of the page and send it with the headers of a current browser."""
        headers = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
        self.page = await self.client.post(action, data=self.find_form(action) | fields, headers=headers)
        return self.page

    async def sign_up(self, email: str, password: str = PASSWORD) -> None:
        await self.open("/sign-up")
        await self.send("/sign-up", email=email, password=password)
        assert self.path == "/sign-in", self.text

    async def sign_in(self, email: str, password: str = PASSWORD) -> None:
        await self.open("/sign-in")
        await self.send("/sign-in", email=email, password=password)
        assert self.path == "/", self.text

    async def enter(self, email: str) -> None:
        await self.sign_up(email)
        await self.sign_in(email)

    def list_ids(self, pattern: str) -> list[str]:
        """Return the distinct IDs in those links of the page that match `pattern`, in which `{}` stands for an ID."""
        found = re.findall(re.escape(pattern).replace(r"\{\}", "([0-9a-f-]{36})") + '"', self.text)
        return list(dict.fromkeys(found))


@asynccontextmanager
async def open_browser(app: FastAPI, base_url: str = ORIGIN) -> AsyncIterator[Browser]:
    async with open_client(app, base_url, device="a browser") as client:
        yield Browser(client)


async def list_events(connection: AsyncConnection) -> list[str]:
    return list((await connection.scalars(select(AuditEvent.event).order_by(AuditEvent.id))).all())


def list_cookies(response: httpx2.Response) -> dict[str, str]:
    cookies = response.headers.get_list("set-cookie")
    return {cookie.partition("=")[0]: cookie.partition(";")[2] for cookie in cookies}
