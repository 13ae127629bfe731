"""The pages' door: home, sign-up, log-in and log-out, and what guards them."""

import asyncio
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import SecretStr, ValidationError
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import UserSession
from app.accounts.scopes import Scope, format_scope, list_allowed
from app.api import FEATURES
from app.application import create_app
from app.core.audit import AuditEvent
from app.core.config import Environment, Settings
from app.core.database import Database
from app.core.features import Feature
from app.core.protocol import MAX_FORM_BYTES
from app.web.settings import WebSettings
from app.web.sign_in import own_path
from app.web.signing import Signer
from app.web.texts import LOCALES, Texts
from tests.accounts import PASSWORD, Account, request_token
from tests.browsing import ORIGIN, Browser, open_browser
from tests.clients import HangUpMiddleware, open_client
from tests.databases import SECRET_KEY, make_settings
from tests.second_factor import NOW, enable, show_code

EMAIL = "ada@example.com"
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@pytest.fixture
async def browser(app: FastAPI) -> AsyncIterator[Browser]:
    async with open_browser(app) as browser:
        yield browser


@pytest.fixture
async def logged_in(browser: Browser) -> Browser:
    await browser.enter(EMAIL)
    return browser


async def list_events(connection: AsyncConnection) -> list[str]:
    return list((await connection.scalars(select(AuditEvent.event).order_by(AuditEvent.id))).all())


def list_cookies(response: httpx2.Response) -> dict[str, str]:
    cookies = response.headers.get_list("set-cookie")
    return {cookie.partition("=")[0]: cookie.partition(";")[2] for cookie in cookies}


async def test_person_signs_up_logs_in_and_logs_out(browser: Browser, connection: AsyncConnection) -> None:
    await browser.sign_up(EMAIL)
    assert "Your account is there" in browser.text

    await browser.log_in(EMAIL)
    assert f"Hello, {EMAIL}." in browser.text

    await browser.send("/log-out")
    assert "You are logged out." in browser.text
    await browser.open("/")
    assert "Hello" not in browser.text
    assert "You are logged out." not in browser.text
    assert await list_events(connection) == ["user.created", "sign-in.succeeded", "session.ended"]


async def test_cookies_are_for_this_host_alone_and_out_of_reach_for_scripts(browser: Browser) -> None:
    await browser.sign_up(EMAIL)
    await browser.log_in(EMAIL)

    answers = [answer for answer in [*browser.page.history, browser.page] if "set-cookie" in answer.headers]
    cookies = {name: kept for answer in answers for name, kept in list_cookies(answer).items()}
    assert "__Host-session" in cookies
    for attributes in cookies.values():
        assert {"HttpOnly", "Path=/", "SameSite=lax", "Secure"} <= set(attributes.strip().split("; "))
        assert "Domain" not in attributes


async def test_cookies_work_without_tls_on_the_way_to_a_machine_of_ones_own(app: FastAPI) -> None:
    async with open_browser(app, "http://localhost") as browser:
        await browser.open("/log-in")

        assert list(list_cookies(browser.page)) == ["visitor"]
        assert "Secure" not in list_cookies(browser.page)["visitor"]


async def test_deployed_service_sends_no_cookie_without_tls(migrated_url: str, database: Database) -> None:
    settings = make_settings(
        migrated_url,
        environment=Environment.PRODUCTION,
        allowed_hosts=("example.com",),
        secret_key=SecretStr("3f0c9d7b5a1e8264" * 4),
    )

    async with open_browser(create_app(settings, database), "http://example.com") as browser:
        await browser.open("/log-in")

    assert "Secure" in list_cookies(browser.page)["__Host-visitor"]


@pytest.mark.parametrize("name", ["__Host-session", "session"])
async def test_forged_cookie_is_nobodys(logged_in: Browser, settings: Settings, name: str) -> None:
    signed = logged_in.client.cookies["__Host-session"]
    text = signed.rpartition(".")[0]
    other_key = settings.model_copy(update={"secret_key": SecretStr("another" * 8)})
    forged = Signer(other_key).sign("session", text)

    for value in (forged, text, f"{text}.", signed[:-1], f"x{signed}", "", "\u00e9.\u00e9"):
        logged_in.client.cookies.clear()
        answer = await logged_in.client.get("/", headers={b"Cookie": f"{name}={value}".encode()})

        assert answer.status_code == 200
        assert "Hello" not in answer.text


async def test_cookie_signed_with_a_predecessor_of_the_key_works_and_is_replaced(
    logged_in: Browser, settings: Settings, database: Database
) -> None:
    changes: dict[str, object] = {
        "secret_key": SecretStr("n" * 32),
        "secret_key_fallbacks": (SecretStr(SECRET_KEY),),
    }

    async with open_browser(create_app(settings.model_copy(update=changes), database)) as browser:
        browser.client.cookies = logged_in.client.cookies
        await browser.open("/")
        assert "Hello" in browser.text
    changes["secret_key_fallbacks"] = ()
    async with open_browser(create_app(settings.model_copy(update=changes), database)) as later:
        later.client.cookies = browser.client.cookies
        await later.open("/")

        assert "Hello" in later.text
        assert "set-cookie" not in later.page.headers


async def test_session_that_was_ended_elsewhere_is_out_at_the_next_page(logged_in: Browser) -> None:
    token = (await request_token(logged_in.client, username=EMAIL, password=PASSWORD)).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    listed = (await logged_in.client.get("/api/v1/auth/sessions", headers=headers)).json()
    (own,) = (each["id"] for each in listed if each["device"] == "a browser" and not each["is_current"])

    proof = await logged_in.client.post(
        "/api/v1/auth/confirmation", json={"current_password": PASSWORD}, headers=headers
    )
    headers["X-Confirmation"] = proof.json()["confirmation"]
    await logged_in.client.delete(f"/api/v1/auth/sessions/{own}", headers=headers)

    await logged_in.open("/")
    assert "Hello" not in logged_in.text


async def test_session_of_the_pages_has_no_rights_of_an_administrator(
    browser: Browser, admin: Account, connection: AsyncConnection
) -> None:
    await browser.log_in(admin.email)

    sessions = (
        await connection.execute(select(UserSession.scope).where(UserSession.user_id == UUID(admin.id)))
    ).scalars()
    assert set(sessions) == {Scope.ACCOUNT, format_scope(list_allowed(is_admin=True))}


async def test_log_out_ends_the_session_and_not_only_the_cookie(logged_in: Browser) -> None:
    kept = dict(logged_in.client.cookies)
    await logged_in.send("/log-out")

    logged_in.client.cookies = httpx2.Cookies(kept)

    await logged_in.open("/")
    assert "Hello" not in logged_in.text


async def test_session_in_use_is_extended_and_its_cookie_replaced(
    logged_in: Browser, connection: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = await connection.scalar(select(UserSession.last_used_at))
    await logged_in.open("/")
    assert "set-cookie" not in logged_in.page.headers
    later = time.time() + 3601

    class Clock:
        @staticmethod
        def time() -> float:
            return later

    monkeypatch.setattr("app.web.visits.time", Clock)
    await logged_in.open("/")

    assert list(list_cookies(logged_in.page)) == ["__Host-session"]
    assert await connection.scalar(select(UserSession.last_used_at)) != long_ago


async def test_expired_session_is_out(logged_in: Browser, connection: AsyncConnection) -> None:
    expired = await connection.scalar(select(UserSession.created_at))
    await connection.execute(update(UserSession).values(expires_at=expired))

    await logged_in.open("/")

    assert "Hello" not in logged_in.text


async def test_a_browser_that_hangs_up_in_a_form_is_no_error_of_ours(app: FastAPI, logs: io.StringIO) -> None:
    app.add_middleware(HangUpMiddleware)
    async with open_browser(app) as browser:
        await browser.open("/log-in")
        await browser.send("/log-in", email=EMAIL, password=PASSWORD)

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
@pytest.mark.parametrize("action", ["/log-out", "/log-in", "/sign-up"])
async def test_form_from_another_site_is_refused_even_with_a_token(
    browser: Browser, action: str, headers: dict[str, str]
) -> None:
    await browser.open("/log-in")
    fields = browser.find_form("/log-in")

    answer = await browser.client.post(action, data=fields, headers=headers)

    assert answer.status_code == 403
    assert "another site" in answer.text


@pytest.mark.parametrize("token", [None, "", "x", "x.y", "\ud800"], ids=repr)
@pytest.mark.parametrize("action", ["/log-out", "/log-in", "/sign-up"])
async def test_form_without_a_token_of_its_own_is_refused(logged_in: Browser, action: str, token: str | None) -> None:
    fields = {"email": EMAIL, "password": PASSWORD}
    if token is not None:
        fields["csrf_token"] = token.encode("utf-8", "replace").decode()

    answer = await logged_in.client.post(action, data=fields)

    assert answer.status_code == 403
    await logged_in.open("/")
    assert "Hello" in logged_in.text


async def test_token_of_another_browser_is_refused(app: FastAPI, logged_in: Browser) -> None:
    async with open_browser(app) as other:
        await other.open("/log-in")
        token = other.find_form("/log-in")["csrf_token"]

    answer = await logged_in.client.post("/log-out", data={"csrf_token": token})

    assert answer.status_code == 403


async def test_tokens_of_one_session_differ(logged_in: Browser) -> None:
    tokens = set()
    for _ in range(2):
        await logged_in.open("/")
        tokens.add(logged_in.find_form("/log-out")["csrf_token"])

    assert len(tokens) == 2


async def test_form_that_never_arrives_keeps_nobody_waiting(live_url: str) -> None:
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


async def test_raw_utf8_in_a_form_is_what_was_typed(browser: Browser) -> None:
    password = "пароль от сервера"
    await browser.sign_up("ada@example.com", password)
    await browser.open("/log-in")
    token = browser.find_form("/log-in")["csrf_token"]
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Origin": ORIGIN}

    def form(typed: bytes) -> bytes:
        return b"csrf_token=%s&email=ada@example.com&password=%s" % (token.encode(), typed)

    refused = await browser.client.post("/log-in", content=form(password.encode("cp1251")), headers=headers)
    entered = await browser.client.post("/log-in", content=form(password.encode()), headers=headers)

    assert refused.status_code == 400
    assert "UTF-8" in refused.text
    assert (entered.status_code, entered.url.path) == (200, "/")


async def test_a_page_takes_its_longest_form_and_no_longer_one(browser: Browser) -> None:
    longest = {"csrf_token": "x" * 200, "title": "😀" * 200, "description": "😀" * 10_000}
    headers = {"Content-Type": "application/x-www-form-urlencoded"}

    taken = await browser.client.post("/log-out", data=longest)
    refused = await browser.client.post("/log-out", content=b"%" * (MAX_FORM_BYTES + 1), headers=headers)

    assert (taken.status_code, refused.status_code) == (403, 413)


async def test_body_that_is_no_form_is_refused(logged_in: Browser) -> None:
    fields = logged_in.find_form("/log-out")

    answer = await logged_in.client.post("/log-out", json=fields)

    assert answer.status_code == 415


async def test_wrong_password_is_said_and_the_address_stays_in_the_form(
    browser: Browser, connection: AsyncConnection
) -> None:
    await browser.sign_up(EMAIL)
    await browser.send("/log-in", email=EMAIL, password="wrong password!")

    assert browser.page.status_code == 400
    assert "Incorrect e-mail address or password" in browser.text
    assert browser.find_form("/log-in")["email"] == EMAIL
    assert "wrong password!" not in browser.text
    assert "sign-in.failed" in await list_events(connection)


@pytest.mark.usefixtures("clock")
async def test_guessing_is_slowed_down_as_at_the_api(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, throttling=True, throttle_account_attempts=2)

    async with open_browser(create_app(settings, database)) as browser:
        await browser.open("/log-in")
        for _ in range(3):
            await browser.send("/log-in", email=EMAIL, password="wrong password!")

        assert browser.page.status_code == 429
        assert int(browser.page.headers["retry-after"]) >= 1
        assert "Too many attempts" in browser.text
        api = await request_token(browser.client, username=EMAIL, password=PASSWORD)
        assert api.status_code == 429


@pytest.mark.usefixtures("clock")
async def test_sign_ups_are_bounded_as_at_the_api(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, throttling=True, throttle_address_attempts=1)

    async with open_browser(create_app(settings, database)) as browser:
        await browser.sign_up(EMAIL)
        await browser.open("/sign-up")
        await browser.send("/sign-up", email="bob@example.com", password=PASSWORD)

    assert browser.page.status_code == 429


async def test_second_factor_is_asked_for(
    client: httpx2.AsyncClient,
    user: Account,
    app: FastAPI,
    clock: list[int],
) -> None:
    secret, _ = await enable(client, user)
    clock[0] += 60

    async with open_browser(app) as browser:
        await browser.open("/log-in")
        await browser.send("/log-in", email=user.email, password=PASSWORD)
        assert "second factor" in browser.text
        await browser.send("/log-in", password=PASSWORD, otp="000000")
        assert "Incorrect code." in browser.text
        await browser.send("/log-in", password=PASSWORD, otp=" ".join(show_code(secret, NOW + 60)))

        assert "Hello" in browser.text


async def test_what_is_wrong_with_a_sign_up_is_said_at_the_field(browser: Browser) -> None:
    await browser.open("/sign-up")
    await browser.send("/sign-up", name="Ada", email="nobody", password="short")

    assert browser.page.status_code == 422
    assert 'aria-describedby="email-note" aria-invalid="true"' in re.sub(r"\s+", " ", browser.text)
    assert 'id="password-note">must have 12 to' in browser.text
    assert browser.find_form("/sign-up")["name"] == "Ada"
    assert browser.find_form("/sign-up")["password"] == ""


async def test_address_that_mail_software_decodes_is_refused(browser: Browser) -> None:
    await browser.open("/sign-up")
    await browser.send("/sign-up", email="=?utf-8?q?ada?=@example.com", password=PASSWORD)

    assert browser.page.status_code == 422
    assert 'id="email-note">must not contain =?' in browser.text


async def test_taken_address_is_refused_as_at_the_api(browser: Browser) -> None:
    await browser.sign_up(EMAIL)
    await browser.open("/sign-up")
    await browser.send("/sign-up", email=EMAIL, password=PASSWORD)

    assert browser.page.status_code == 409
    assert "already an account" in browser.text


async def test_sign_up_that_is_closed_is_no_page(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, registration_open=False)

    async with open_browser(create_app(settings, database)) as browser:
        await browser.open("/sign-up")

    assert browser.page.status_code == 403
    assert "Sign-up is closed." in browser.text


async def test_text_of_strangers_is_shown_and_not_run(browser: Browser) -> None:
    await browser.open("/sign-up")
    await browser.send("/sign-up", email=EMAIL, password=PASSWORD, name="<script>alert(1)</script>")
    await browser.log_in(EMAIL)

    assert "<script" not in browser.text
    assert "&lt;script&gt;" in browser.text


@pytest.mark.parametrize("path", ["/", "/forgot-password", "/sign-up"])
async def test_pages_allow_nothing_from_elsewhere_and_nothing_inline(browser: Browser, path: str) -> None:
    await browser.open(path)

    assert browser.page.headers["content-security-policy"] == POLICY
    assert not re.search(r"<script|<style|\sstyle=|\son[a-z]+=", browser.text)
    assert browser.page.headers["cache-control"] == "no-store"


async def test_features_add_sources_to_the_policy_of_pages(settings: Settings, database: Database) -> None:
    images = Feature(content_security_policy={"img-src": ("https://images.example.com",)})
    scripts = Feature(
        content_security_policy={"img-src": ("data:",), "script-src": ("'self'",), "base-uri": ("'self'",)}
    )
    async with open_browser(create_app(settings, database, features=(*FEATURES, images, scripts))) as browser:
        policies = [(await browser.open(path)).headers["content-security-policy"] for path in ("/", "/nothing")]

    changed = POLICY.replace("img-src 'self'", "img-src 'self' https://images.example.com data:")
    assert policies == [changed.replace("base-uri 'none'", "base-uri 'self'") + "; script-src 'self'"] * 2


@pytest.mark.parametrize(
    "path", ["//evil.example", "/\\evil.example", "https://evil.example", "/a/../b", "/a//b", "/a?b", "", "/\n/a"]
)
def test_nobody_is_sent_elsewhere_after_the_log_in(path: str) -> None:
    assert own_path(path) == "/"


async def test_log_in_as_another_ends_the_session_before(logged_in: Browser, connection: AsyncConnection) -> None:
    other = f"{uuid4().hex}@example.com"
    await logged_in.client.post("/api/v1/users", json={"email": other, "password": PASSWORD})
    token = logged_in.find_form("/log-out")["csrf_token"]

    await logged_in.client.post("/log-in", data={"csrf_token": token, "email": other, "password": PASSWORD})

    await logged_in.open("/")
    assert f"Hello, {other}." in logged_in.text
    assert len((await connection.scalars(select(UserSession.id))).all()) == 1


async def test_static_files_are_named_after_what_is_in_them_and_kept_for_ever(browser: Browser) -> None:
    await browser.open("/")
    (style,) = re.findall(r'<link rel="stylesheet" href="(/static/pages\.[0-9a-f]{16}\.css)">', browser.text)

    answer = await browser.client.get(style)

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/css")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    for missing in ("/static/pages.css", f"{style}x", "/static/..%2fsettings.py"):
        assert (await browser.client.get(missing)).status_code == 404


@pytest.fixture
def published(tmp_path: Path) -> dict[str, bytes]:
    """What a deployment gives the web server."""
    command = [sys.executable, "-m", "app.web.assets", str(tmp_path)]
    subprocess.run(command, check=True)  # noqa: S603  # fixed
    return {file.name: file.read_bytes() for file in tmp_path.iterdir()}


async def test_web_server_is_given_the_files_that_pages_name(browser: Browser, published: dict[str, bytes]) -> None:
    await browser.open("/")

    named = set(re.findall(r'"/static/([^"]+)"', browser.text))
    assert named
    assert named <= set(published)
    for name, content in published.items():
        assert (await browser.client.get(f"/static/{name}")).content == content


async def test_browser_gets_a_page_where_there_is_nothing_and_the_api_stays_as_it_was(browser: Browser) -> None:
    page = await browser.open("/nothing")
    api = await browser.open("/api/v1/nothing")
    program = await browser.client.get("/nothing", headers={"Accept": "*/*"})

    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["x-request-id"] in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for answer in (api, program):
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


async def test_every_text_that_a_page_names_is_there() -> None:
    sources = [*LOCALES.parent.rglob("*.html"), *LOCALES.parent.rglob("*.py")]
    code = "".join(source.read_text(encoding="utf-8") for source in sources)
    texts = Texts(LOCALES / "en.toml")

    named = set(re.findall(r"""\bt\(["']([a-z_.]+)["']|["'](flash\.[a-z_]+)["']|title=["']([a-z_.]+)["']""", code))

    keys = {next(filter(None, groups)) for groups in named}
    assert len(keys) > 20
    for key in keys:
        assert texts(key, name="Ada")


def test_language_without_texts_refuses_the_start() -> None:
    with pytest.raises(ValidationError, match="must name a file of app/web/locales"):
        WebSettings(_env_file=None, web_language="xx")


@pytest.mark.parametrize("locale", sorted(LOCALES.iterdir()), ids=lambda path: path.stem)
def test_every_language_has_every_text(locale: Path) -> None:
    assert Texts(locale).gaps == []


SIGN_UP = '[sign_up]\ntitle = "Konto anlegen"\n'
BROKEN_TEXTS = {
    "nothing": ("", "sign_up.title is missing"),
    "no TOML": ("[sign_up\ntitle =", "the file cannot be read (Expected"),
    "no UTF-8": (b'[sign_up]\ntitle = "\xff"', "the file cannot be read (must be UTF-8)"),
    "an empty text": ('[sign_up]\ntitle = " "', "sign_up.title is missing"),
    "a number": ("[sign_up]\ntitle = 3", "sign_up.title is missing"),
    "a table": ('[sign_up.title]\na = "b"', "sign_up.title is missing"),
    "a text in no table": ('sign_up = "x"', "sign_up is not a text of the pages"),
    "an unknown text": (SIGN_UP + 'titel = "x"', "sign_up.titel is not a text of the pages"),
    "another placeholder": ('[home]\nhello = "Hallo, {nam}."', "home.hello must have the placeholders"),
    "a number as placeholder": ('[home]\nhello = "Hallo, {}."', "home.hello must have the placeholders"),
    "an attribute": ('[home]\nhello = "Hallo, {name.x}."', "home.hello must have the placeholders"),
    "a format": ('[home]\nhello = "Hallo, {name:d}."', "home.hello must have the placeholders"),
    "no placeholder": ('[home]\nhello = "Hallo."', "home.hello must have the placeholders"),
    "a brace alone": ('[home]\nhello = "Hallo, {name"', "home.hello must have the placeholders"),
    "a placeholder too many": (SIGN_UP + 'log_in_instead = "{name}"', "sign_up.log_in_instead must have the placeh"),
    "messages that are none": ('messages = "x"', "messages must be a table"),
    "a message that is none": (
        '[messages]\n"Incorrect code." = 3',
        'messages."Incorrect code." is missing',
    ),
}


@pytest.mark.parametrize(("content", "gap"), BROKEN_TEXTS.values(), ids=BROKEN_TEXTS)
async def test_english_stands_in_for_texts_that_a_language_lacks(
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    logs: io.StringIO,
    content: str | bytes,
    gap: str,
) -> None:
    (tmp_path / "xx.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr("app.web.settings.LOCALES", tmp_path)
    spoken = WebSettings(_env_file=None, web_language="xx")
    english = Texts(LOCALES / "en.toml")

    async with open_client(create_app(settings.join(spoken), database)) as client:
        page = await client.get("/sign-up")

    (note,) = spoken.notes
    (warning,) = [line for line in logs.getvalue().splitlines() if "English stands in" in line]
    assert "app/web/locales/xx.toml" in note
    assert gap in note
    assert json.loads(warning)["level"] == "warning"
    assert page.status_code == 200
    assert english("sign_up.log_in_instead") in page.text
    assert '<html lang="xx"' in page.text
    assert Texts(spoken.locale)("home.hello", name="Ada") == "Hello, Ada."


def test_a_text_that_is_there_is_used_beside_those_that_are_missing(tmp_path: Path) -> None:
    file = tmp_path / "xx.toml"
    file.write_text(SIGN_UP + '[home]\nhello = "{name}, hallo."\n', encoding="utf-8")

    texts = Texts(file)

    assert (texts("sign_up.title"), texts("home.hello", name="Ada")) == ("Konto anlegen", "Ada, hallo.")


def test_english_texts_that_cannot_be_read_refuse_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "en.toml").write_text("[sign_up\n", encoding="utf-8")
    monkeypatch.setattr("app.web.texts.ENGLISH", tmp_path / "en.toml")

    with pytest.raises(ValidationError, match=r"needs the English texts in app/web/locales/en\.toml"):
        WebSettings(_env_file=None)


def test_texts_of_services_are_translated_by_their_sentence(tmp_path: Path) -> None:
    file = tmp_path / "xx.toml"
    file.write_text('[messages]\n"Incorrect code." = "Nix da."\n', encoding="utf-8")

    texts = Texts(file)

    assert texts.translate("Incorrect code.") == "Nix da."
    assert texts.translate("Something else.") == "Something else."
