"""What a browser is shown when something is wrong; programs get problem documents as ever."""

import io
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI

from app.application import create_app
from app.core.config.settings import Settings
from app.core.errors import ForbiddenError, UnavailableError
from tests.support.browsing import Browser, open_browser
from tests.support.databases import make_settings, unreachable_url

PROBLEM = "application/problem+json"
ERRORS = {
    "forbidden": (ForbiddenError("This is not for you."), 403),
    "broken": (ZeroDivisionError("a secret of the inside"), 500),
    "unavailable": (UnavailableError("The database is not available."), 503),
}


@pytest.fixture
async def browser(app: FastAPI, settings: Settings) -> AsyncIterator[Browser]:
    @app.get("/{kind}-page")
    @app.get(settings.api_prefix + "/{kind}")
    async def fail(kind: str) -> None:
        raise ERRORS[kind][0]

    async with open_browser(app) as browser:
        yield browser


@pytest.mark.parametrize("kind", ERRORS)
async def test_browser_is_shown_a_page(browser: Browser, kind: str) -> None:
    await browser.open(f"/{kind}-page")

    assert browser.page.status_code == ERRORS[kind][1]
    assert browser.page.headers["content-type"].startswith("text/html")
    assert browser.page.headers["x-request-id"] in browser.text
    assert browser.page.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in browser.page.headers["content-security-policy"]
    assert "secret of the inside" not in browser.text


@pytest.mark.parametrize("kind", ERRORS)
async def test_api_and_programs_get_a_problem_document(browser: Browser, kind: str) -> None:
    answers = [
        await browser.client.get(f"/api/v1/{kind}"),
        await browser.client.get(f"/{kind}-page", headers={"Accept": "*/*"}),
        await browser.client.get(f"/{kind}-page", headers={"Accept": "application/json"}),
    ]

    for answer in answers:
        assert answer.status_code == ERRORS[kind][1]
        assert answer.headers["content-type"] == PROBLEM
        assert answer.json()["status"] == ERRORS[kind][1]


async def test_page_says_when_to_come_back(browser: Browser) -> None:
    await browser.open("/unavailable-page")

    assert browser.page.headers["retry-after"] == "1"


async def test_error_is_logged_as_ever(browser: Browser, logs: io.StringIO) -> None:
    await browser.open("/broken-page")

    assert "unhandled error" in logs.getvalue()


async def test_path_of_a_stranger_is_not_run(browser: Browser) -> None:
    await browser.open("/<script>alert(1)</script>")

    assert browser.page.status_code == 404
    assert "<script" not in browser.text


async def test_probes_get_what_they_always_got(browser: Browser) -> None:
    await browser.open("/health/live")

    assert browser.page.headers["content-type"] == "application/json"


async def test_refusals_of_the_middleware_are_pages_too(browser: Browser) -> None:
    answer = await browser.client.get("/", headers={"Host": "evil.example"})

    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("text/html")


async def test_browser_is_told_that_the_database_is_gone() -> None:
    app = create_app(make_settings(unreachable_url()))

    async with open_browser(app) as browser:
        await browser.open("/log-in")
        fields = browser.find_form("/log-in") | {"email": "ada@example.com", "password": "not even looked at"}
        answer = await browser.client.post("/log-in", data=fields)

    assert answer.status_code == 503
    assert answer.headers["content-type"].startswith("text/html")
    assert "The database is not available." in answer.text
