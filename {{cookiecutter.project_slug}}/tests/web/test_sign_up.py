import re

import pytest

from app.core.db.session import Database
from tests.support.accounts import PASSWORD
from tests.support.applications import create_app
from tests.support.browsing import EMAIL, Browser, open_browser
from tests.support.databases import make_settings


@pytest.mark.usefixtures("clock")
async def test_sign_up_is_throttled(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, throttling=True, throttle_address_attempts=1)

    async with open_browser(create_app(settings, database)) as browser:
        await browser.sign_up(EMAIL)
        await browser.open("/sign-up")
        await browser.send("/sign-up", email="bob@example.com", password=PASSWORD)

    assert browser.page.status_code == 429


async def test_sign_up_errors_are_shown_at_their_fields(browser: Browser) -> None:
    await browser.open("/sign-up")
    await browser.send("/sign-up", name="Ada", email="nobody", password="short")

    assert browser.page.status_code == 422
    assert 'aria-describedby="email-note" aria-invalid="true"' in re.sub(r"\s+", " ", browser.text)
    assert 'id="password-note">must have 12 to' in browser.text
    assert browser.find_form("/sign-up")["name"] == "Ada"
    assert browser.find_form("/sign-up")["password"] == ""


async def test_address_with_an_encoded_word_is_refused(browser: Browser) -> None:
    await browser.open("/sign-up")
    await browser.send("/sign-up", email="=?utf-8?q?ada?=@example.com", password=PASSWORD)

    assert browser.page.status_code == 422
    assert 'id="email-note">must not contain =?' in browser.text


async def test_sign_up_with_a_taken_address_is_refused(browser: Browser) -> None:
    await browser.sign_up(EMAIL)
    await browser.open("/sign-up")
    await browser.send("/sign-up", email=EMAIL, password=PASSWORD)

    assert browser.page.status_code == 409
    assert "Another account has this e-mail address" in browser.text


async def test_closed_sign_up_is_forbidden(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, registration_open=False)

    async with open_browser(create_app(settings, database)) as browser:
        await browser.open("/sign-up")

    assert browser.page.status_code == 403
    assert "Sign-up is closed." in browser.text
