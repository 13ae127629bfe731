import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.db.session import Database
from app.web.sign_in import own_path
from tests.support.accounts import PASSWORD, Account, request_token
from tests.support.applications import create_app
from tests.support.browsing import EMAIL, Browser, list_events, open_browser
from tests.support.clock import Clock
from tests.support.databases import make_settings
from tests.support.second_factor import NOW, enable, show_code


async def test_user_signs_up_signs_in_and_signs_out(browser: Browser, connection: AsyncConnection) -> None:
    await browser.sign_up(EMAIL)
    assert "Account created" in browser.text

    await browser.sign_in(EMAIL)
    assert f"Hello, {EMAIL}." in browser.text

    await browser.send("/sign-out")
    assert "You are signed out." in browser.text
    await browser.open("/")
    assert "Hello" not in browser.text
    assert "You are signed out." not in browser.text
    assert await list_events(connection) == ["user.created", "sign-in.succeeded", "session.ended"]


async def test_wrong_password_shows_an_error_and_keeps_the_address(
    browser: Browser, connection: AsyncConnection
) -> None:
    await browser.sign_up(EMAIL)
    await browser.send("/sign-in", email=EMAIL, password="wrong password!")

    assert browser.page.status_code == 400
    assert "Incorrect e-mail address or password" in browser.text
    assert browser.find_form("/sign-in")["email"] == EMAIL
    assert "wrong password!" not in browser.text
    assert "sign-in.failed" in await list_events(connection)


@pytest.mark.usefixtures("clock")
async def test_sign_in_is_throttled_together_with_the_api(
    migrated_url: str, database: Database, connection: AsyncConnection
) -> None:
    settings = make_settings(migrated_url, throttling=True, throttle_account_attempts=2)

    async with open_browser(create_app(settings, database)) as browser:
        await browser.open("/sign-in")
        for _ in range(3):
            await browser.send("/sign-in", email=EMAIL, password="wrong password!")

        assert browser.page.status_code == 429
        assert int(browser.page.headers["retry-after"]) >= 1
        assert "Too many attempts" in browser.text
        assert "request.throttled" in await list_events(connection)
        api = await request_token(browser.client, username=EMAIL, password=PASSWORD)
        assert api.status_code == 429


async def test_second_factor_is_asked_for(
    client: httpx2.AsyncClient,
    user: Account,
    app: FastAPI,
    clock: Clock,
) -> None:
    secret, _ = await enable(client, user)
    clock.now += 60

    async with open_browser(app) as browser:
        await browser.open("/sign-in")
        await browser.send("/sign-in", email=user.email, password=PASSWORD)
        assert "second factor" in browser.text
        await browser.send("/sign-in", password=PASSWORD, otp="000000")
        assert "Incorrect second factor: the code is wrong" in browser.text
        await browser.send("/sign-in", password=PASSWORD, otp=" ".join(show_code(secret, NOW + 60)))

        assert "Hello" in browser.text


@pytest.mark.parametrize(
    "path", ["//evil.example", "/\\evil.example", "https://evil.example", "/a/../b", "/a//b", "/a?b", "", "/\n/a"]
)
def test_sign_in_redirects_to_this_service_only(path: str) -> None:
    assert own_path(path) == "/"
