"""Error pages for browsers; programs get problem documents."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.errors import ForbiddenError, UnavailableError
from app.web.settings import WebSettings
from tests.support.applications import create_app
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
async def test_error_is_a_page_for_browsers(browser: Browser, kind: str) -> None:
    await browser.open(f"/{kind}-page")

    assert browser.page.status_code == ERRORS[kind][1]
    assert browser.page.headers["content-type"].startswith("text/html")
    assert browser.page.headers["x-request-id"] in browser.text
    assert browser.page.headers["cache-control"] == "no-store"
    assert "default-src 'none'" in browser.page.headers["content-security-policy"]
    assert "secret of the inside" not in browser.text


@pytest.mark.parametrize("kind", ERRORS)
async def test_error_is_a_problem_document_for_the_api_and_programs(browser: Browser, kind: str) -> None:
    answers = [
        await browser.client.get(f"/api/v1/{kind}"),
        await browser.client.get(f"/{kind}-page", headers={"Accept": "*/*"}),
        await browser.client.get(f"/{kind}-page", headers={"Accept": "application/json"}),
    ]

    for answer in answers:
        assert answer.status_code == ERRORS[kind][1]
        assert answer.headers["content-type"] == PROBLEM
        assert answer.json()["status"] == ERRORS[kind][1]


async def test_error_page_keeps_retry_after(browser: Browser) -> None:
    await browser.open("/unavailable-page")

    assert browser.page.headers["retry-after"] == "1"


async def test_error_behind_an_error_page_is_logged(browser: Browser, logs: io.StringIO) -> None:
    await browser.open("/broken-page")

    assert "unhandled error" in logs.getvalue()


async def test_path_is_escaped_on_the_error_page(browser: Browser) -> None:
    await browser.open("/<script>alert(1)</script>")

    assert browser.page.status_code == 404
    assert "<script" not in browser.text


async def test_probes_get_json(browser: Browser) -> None:
    await browser.open("/health/live")

    assert browser.page.headers["content-type"] == "application/json"


async def test_errors_of_middleware_are_pages(browser: Browser) -> None:
    answer = await browser.client.get("/", headers={"Host": "evil.example"})

    assert answer.status_code == 400
    assert answer.headers["content-type"].startswith("text/html")


async def test_unavailable_database_is_reported_on_a_page() -> None:
    app = create_app(make_settings(unreachable_url()))

    async with open_browser(app) as browser:
        await browser.open("/sign-in")
        fields = browser.find_form("/sign-in") | {"email": "ada@example.com", "password": "not even looked at"}
        answer = await browser.client.post("/sign-in", data=fields)

    assert answer.status_code == 503
    assert answer.headers["content-type"].startswith("text/html")
    assert "The database is not available." in answer.text


GERMAN = """
[errors]
forbidden = "Kein Zutritt."
too-many-requests = "Bitte in {retry_after} s wieder."
invalid-form = "Bitte berichtigen."
string_too_long = "Höchstens {max_length} Zeichen."
password_length = "Mindestens {min_length} Zeichen."
"""


@pytest.fixture
def german(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    (tmp_path / "de.toml").write_text(GERMAN, encoding="utf-8")
    monkeypatch.setattr("app.web.settings.LOCALES", tmp_path)
    return settings.join(WebSettings(_env_file=None, web_language="de"))


async def test_error_with_changed_sentence_is_still_translated(german: Settings, database: Database) -> None:
    app = create_app(german, database)

    @app.get("/refusal/{sentence}")
    async def refuse(sentence: str) -> None:
        raise ForbiddenError(sentence)

    async with open_browser(app) as browser:
        pages = [(await browser.open(f"/refusal/{sentence}")).text for sentence in ("Go away.", "Access denied.")]

    assert [("Kein Zutritt." in page, "Go away." in page, "Access denied." in page) for page in pages] == [
        (True, False, False)
    ] * 2


async def test_errors_of_a_form_and_of_its_fields_are_translated_with_their_values(
    german: Settings, database: Database
) -> None:
    async with open_browser(create_app(german, database)) as browser:
        await browser.open("/sign-up")
        await browser.send("/sign-up", email="ada@example.com", password="short", name="A" * 201)

    assert browser.page.status_code == 422
    assert "Bitte berichtigen." in browser.text
    assert "Höchstens 200 Zeichen." in browser.text
    assert "Mindestens 12 Zeichen." in browser.text


@pytest.mark.usefixtures("clock")
async def test_translation_of_a_throttled_form_says_when_to_try_again(german: Settings, database: Database) -> None:
    throttled = german.model_copy(update={"throttling": True, "throttle_account_attempts": 1})

    async with open_browser(create_app(throttled, database)) as browser:
        await browser.open("/sign-in")
        for _ in range(2):
            await browser.send("/sign-in", email="ada@example.com", password="wrong password!")

    assert browser.page.status_code == 429
    assert f"Bitte in {browser.page.headers['retry-after']} s wieder." in browser.text
