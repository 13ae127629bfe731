"""Forms: CSRF tokens, encodings and sizes."""

import asyncio
import io
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from types import SimpleNamespace

import httpx2
import pytest
from fastapi import FastAPI

from app.core.http.middleware.body_limit import MAX_FORM_BYTES
from app.core.http.schemas import RequestModel
from app.web.forms import as_fields, validate_form
from tests.support.accounts import PASSWORD
from tests.support.applications import create_app
from tests.support.browsing import EMAIL, ORIGIN, Browser, open_browser
from tests.support.clients import HangUpMiddleware
from tests.support.databases import make_settings


async def test_disconnect_while_sending_a_form_is_not_logged_as_an_error(app: FastAPI, logs: io.StringIO) -> None:
    app.add_middleware(HangUpMiddleware)
    async with open_browser(app) as browser:
        await browser.open("/sign-in")
        await browser.send("/sign-in", email=EMAIL, password=PASSWORD)

    assert browser.page.status_code == 400
    assert '"level": "error"' not in logs.getvalue()


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": ORIGIN},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
    ids=str,
)
@pytest.mark.parametrize("action", ["/sign-out", "/sign-in", "/sign-up"])
async def test_form_from_another_site_is_refused_even_with_a_token(
    browser: Browser, action: str, headers: dict[str, str]
) -> None:
    await browser.open("/sign-in")
    fields = browser.find_form("/sign-in")

    answer = await browser.client.post(action, data=fields, headers=headers)

    assert answer.status_code == 403
    assert "another site" in answer.text


@pytest.mark.parametrize("token", [None, "", "x", "x.y", "\ud800"], ids=repr)
@pytest.mark.parametrize("action", ["/sign-out", "/sign-in", "/sign-up"])
async def test_form_without_a_valid_token_is_refused(signed_in: Browser, action: str, token: str | None) -> None:
    fields = {"email": EMAIL, "password": PASSWORD}
    if token is not None:
        fields["csrf_token"] = token.encode("utf-8", "replace").decode()

    answer = await signed_in.client.post(action, data=fields)

    assert answer.status_code == 403
    await signed_in.open("/")
    assert "Hello" in signed_in.text


async def test_token_of_another_browser_is_refused(app: FastAPI, signed_in: Browser) -> None:
    async with open_browser(app) as other:
        await other.open("/sign-in")
        token = other.find_form("/sign-in")["csrf_token"]

    answer = await signed_in.client.post("/sign-out", data={"csrf_token": token})

    assert answer.status_code == 403


async def test_form_tokens_of_one_session_differ(signed_in: Browser) -> None:
    tokens = set()
    for _ in range(2):
        await signed_in.open("/")
        tokens.add(signed_in.find_form("/sign-out")["csrf_token"])

    assert len(tokens) == 2


async def test_slow_form_holds_no_database_connection(live_url: str) -> None:
    arrives, waits = asyncio.Event(), asyncio.Event()

    async def send_slowly() -> AsyncIterator[bytes]:
        waits.set()
        await arrives.wait()
        yield b"name=Ada"

    headers = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}
    settings = make_settings(live_url, database_pool_size=1, database_pool_timeout_seconds=5)
    async with open_browser(create_app(settings)) as browser:
        await browser.enter(EMAIL)
        slow = asyncio.create_task(browser.client.post("/account", content=send_slowly(), headers=headers))
        await waits.wait()
        await browser.open("/account")
        await browser.send("/account", name="Grace")
        arrives.set()
        refused = await slow

    assert browser.page.status_code == 200
    assert "Grace" in browser.text
    assert refused.status_code == 403


async def test_form_may_contain_unescaped_utf8(browser: Browser) -> None:
    password = "пароль от сервера"
    await browser.sign_up("ada@example.com", password)
    await browser.open("/sign-in")
    token = browser.find_form("/sign-in")["csrf_token"]
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": ORIGIN}

    def form(typed: bytes) -> bytes:
        return b"csrf_token=%s&email=ada@example.com&password=%s" % (token.encode(), typed)

    refused = await browser.client.post("/sign-in", content=form(password.encode("cp1251")), headers=headers)
    entered = await browser.client.post("/sign-in", content=form(password.encode()), headers=headers)

    assert refused.status_code == 400
    assert "UTF-8" in refused.text
    assert (entered.status_code, entered.url.path) == (200, "/")


async def test_longest_form_is_accepted_and_a_longer_one_refused(browser: Browser) -> None:
    longest = {"csrf_token": "x" * 200, "title": "😀" * 200, "description": "😀" * 10_000}
    headers = {"Content-Type": "application/x-www-form-urlencoded"}

    taken = await browser.client.post("/sign-out", data=longest)
    refused = await browser.client.post("/sign-out", content=b"%" * (MAX_FORM_BYTES + 1), headers=headers)

    assert (taken.status_code, refused.status_code) == (403, 413)


async def test_body_of_another_media_type_is_refused(signed_in: Browser) -> None:
    fields = signed_in.find_form("/sign-out")

    answer = await signed_in.client.post("/sign-out", json=fields)

    assert answer.status_code == 415


@pytest.mark.parametrize(
    ("chosen", "options", "required", "sent"),
    [
        ("", [("a", "A"), ("b", "B")], True, "a"),
        ("b", [("a", "A"), ("b", "B")], True, "b"),
        # A row that is too old for the list stays chosen.
        ("z", [("a", "A")], True, "z"),
        ("", [("a", "A")], False, ""),
    ],
)
async def test_choice_sends_the_current_value(
    browser: Browser, app: FastAPI, chosen: str, options: list[tuple[str, str]], required: bool, sent: str
) -> None:
    async with app.router.lifespan_context(app) as state:
        template = dict(state or {})["web"].environment.get_template("templates/forms.html")
        forms = template.make_module({"fields": {"kind": chosen} if chosen else {}, "problems": {}, "error": None})

    choice = forms.choice("kind", "Kind", options, required=required)
    browser.page = httpx2.Response(200, text=f'<form action="/">{choice}</form>')

    assert browser.find_form("/")["kind"] == sent


def test_values_of_a_record_are_shown_as_forms_have_them() -> None:
    record = SimpleNamespace(empty=None, flag=True, day=date(2026, 1, 31), at=datetime(2026, 1, 31, tzinfo=UTC), n=3)

    fields = as_fields(record, ("empty", "flag", "day", "at", "n"))

    assert fields == {"empty": "", "flag": "true", "day": "2026-01-31", "at": "2026-01-31T00:00:00+00:00", "n": "3"}


class Dated(RequestModel):
    due: date | None
    title: str


def test_empty_optional_field_is_none() -> None:
    data = validate_form(Dated, {"due": "", "title": ""}, optional=("due",))

    assert (data.due, data.title) == (None, "")
