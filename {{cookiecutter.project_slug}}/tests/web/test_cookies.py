import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from app.core.config.base import Environment
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.web.signing import Signer
from tests.support.applications import create_app
from tests.support.browsing import EMAIL, Browser, list_cookies, open_browser
from tests.support.databases import SECRET_KEY, make_settings


async def test_cookies_are_limited_to_this_host_and_hidden_from_scripts(browser: Browser) -> None:
    await browser.sign_up(EMAIL)
    await browser.sign_in(EMAIL)

    answers = [answer for answer in [*browser.page.history, browser.page] if "set-cookie" in answer.headers]
    cookies = {name: kept for answer in answers for name, kept in list_cookies(answer).items()}
    assert "__Host-session" in cookies
    for attributes in cookies.values():
        assert {"HttpOnly", "Path=/", "SameSite=lax", "Secure"} <= set(attributes.strip().split("; "))
        assert "Domain" not in attributes


async def test_cookies_work_without_tls_in_development(app: FastAPI) -> None:
    async with open_browser(app, "http://localhost") as browser:
        await browser.open("/sign-in")

        assert list(list_cookies(browser.page)) == ["anonymous_id"]
        assert "Secure" not in list_cookies(browser.page)["anonymous_id"]


async def test_deployed_service_always_sets_secure_cookies(migrated_url: str, database: Database) -> None:
    settings = make_settings(
        migrated_url,
        environment=Environment.PRODUCTION,
        allowed_hosts=("example.com",),
        secret_key=SecretStr("3f0c9d7b5a1e8264" * 4),
    )

    async with open_browser(create_app(settings, database), "http://example.com") as browser:
        await browser.open("/sign-in")

    assert "Secure" in list_cookies(browser.page)["__Host-anonymous_id"]


@pytest.mark.parametrize("name", ["__Host-session", "session"])
async def test_forged_cookie_is_ignored(signed_in: Browser, settings: Settings, name: str) -> None:
    signed = signed_in.client.cookies["__Host-session"]
    text, timestamp, signature = signed.split(".")
    other_key = settings.model_copy(update={"secret_key": SecretStr("another" * 8)})
    of_another_key = Signer(other_key).sign("cookie session", text)
    of_another_cookie = Signer(settings).sign("cookie flash", text)
    of_another_time = f"{text}.{'A' * len(timestamp)}.{signature}"

    for value in (
        *(of_another_key, of_another_cookie, of_another_time, text, f"{text}.", f"{text}.{timestamp}", signed[:-1]),
        *(f"x{signed}", "", "\u00e9.\u00e9", f"{text}.{'A' * 4000}.{signature}"),
    ):
        signed_in.client.cookies.clear()
        answer = await signed_in.client.get("/", headers={b"Cookie": f"{name}={value}".encode()})

        assert answer.status_code == 200
        assert "Hello" not in answer.text


async def test_cookie_signed_with_an_old_key_works_and_is_signed_again(
    signed_in: Browser, settings: Settings, database: Database
) -> None:
    changes: dict[str, object] = {
        "secret_key": SecretStr("n" * 32),
        "secret_key_fallbacks": (SecretStr(SECRET_KEY),),
    }

    async with open_browser(create_app(settings.model_copy(update=changes), database)) as browser:
        browser.client.cookies = signed_in.client.cookies
        await browser.open("/")
        assert "Hello" in browser.text
    changes["secret_key_fallbacks"] = ()
    async with open_browser(create_app(settings.model_copy(update=changes), database)) as later:
        later.client.cookies = browser.client.cookies
        await later.open("/")

        assert "Hello" in later.text
        assert "set-cookie" not in later.page.headers
