"""Home, sign-up, sign-in and sign-out; cookies, CSRF tokens and translations."""

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
from itsdangerous import TimestampSigner
from pydantic import SecretStr, ValidationError
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import UserSession
from app.accounts.scopes import Scope, format_scope, list_allowed
from app.core.audit.models import AuditEvent
from app.core.config.base import Environment
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.feature import Feature
from app.core.http.middleware.body_limit import MAX_FORM_BYTES
from app.features import FEATURES
from app.web.i18n import LOCALES, Translations
from app.web.settings import WebSettings
from app.web.sign_in import own_path
from app.web.signing import Signer
from tests.support.accounts import PASSWORD, Account, request_token
from tests.support.applications import create_app
from tests.support.browsing import ORIGIN, Browser, open_browser
from tests.support.clients import HangUpMiddleware, open_client
from tests.support.clock import Clock
from tests.support.databases import SECRET_KEY, make_settings
from tests.support.second_factor import NOW, enable, show_code

EMAIL = "ada@example.com"
POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@pytest.fixture
async def browser(app: FastAPI) -> AsyncIterator[Browser]:
    async with open_browser(app) as browser:
        yield browser


@pytest.fixture
async def signed_in(browser: Browser) -> Browser:
    await browser.enter(EMAIL)
    return browser


async def list_events(connection: AsyncConnection) -> list[str]:
    return list((await connection.scalars(select(AuditEvent.event).order_by(AuditEvent.id))).all())


def list_cookies(response: httpx2.Response) -> dict[str, str]:
    cookies = response.headers.get_list("set-cookie")
    return {cookie.partition("=")[0]: cookie.partition(";")[2] for cookie in cookies}


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


async def test_session_ended_elsewhere_is_signed_out_at_the_next_page(signed_in: Browser) -> None:
    token = (await request_token(signed_in.client, username=EMAIL, password=PASSWORD)).json()["access_token"]
    headers = {"Authorization": f"Bearer {token}"}
    listed = (await signed_in.client.get("/api/v1/auth/sessions", headers=headers)).json()
    (own,) = (each["id"] for each in listed if each["device"] == "a browser" and not each["is_current"])

    proof = await signed_in.client.post(
        "/api/v1/auth/confirmation", json={"current_password": PASSWORD}, headers=headers
    )
    headers["X-Confirmation"] = proof.json()["confirmation"]
    await signed_in.client.delete(f"/api/v1/auth/sessions/{own}", headers=headers)

    await signed_in.open("/")
    assert "Hello" not in signed_in.text


async def test_session_of_the_pages_lacks_the_admin_scope(
    browser: Browser, admin: Account, connection: AsyncConnection
) -> None:
    await browser.sign_in(admin.email)

    sessions = (
        await connection.execute(select(UserSession.scope).where(UserSession.user_id == UUID(admin.id)))
    ).scalars()
    assert set(sessions) == {Scope.ACCOUNT, format_scope(list_allowed(is_admin=True))}


async def test_sign_out_ends_the_session_and_not_only_the_cookie(signed_in: Browser) -> None:
    kept = dict(signed_in.client.cookies)
    await signed_in.send("/sign-out")

    signed_in.client.cookies = httpx2.Cookies(kept)

    await signed_in.open("/")
    assert "Hello" not in signed_in.text


async def test_session_in_use_is_extended_and_its_cookie_renewed(
    signed_in: Browser, settings: Settings, connection: AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago = await connection.scalar(select(UserSession.last_used_at))
    await signed_in.open("/")
    assert "set-cookie" not in signed_in.page.headers
    signer = Signer(settings)
    fresh = signer.verify("cookie session", signed_in.client.cookies["__Host-session"])
    assert fresh is not None
    with monkeypatch.context() as patch:
        patch.setattr(TimestampSigner, "get_timestamp", lambda _self: int(time.time()) - 3601)
        old = signer.sign("cookie session", fresh.value)
    signed_in.client.cookies.clear()
    signed_in.client.cookies.set("__Host-session", old)

    await signed_in.open("/")

    assert "__Host-session" in list_cookies(signed_in.page)
    assert await connection.scalar(select(UserSession.last_used_at)) != long_ago


async def test_expired_session_is_signed_out(signed_in: Browser, connection: AsyncConnection) -> None:
    expired = await connection.scalar(select(UserSession.created_at))
    await connection.execute(update(UserSession).values(expires_at=expired))

    await signed_in.open("/")

    assert "Hello" not in signed_in.text


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


@pytest.mark.usefixtures("clock")
async def test_sign_up_is_throttled(migrated_url: str, database: Database) -> None:
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
    clock: Clock,
) -> None:
    secret, _ = await enable(client, user)
    clock.now += 60

    async with open_browser(app) as browser:
        await browser.open("/sign-in")
        await browser.send("/sign-in", email=user.email, password=PASSWORD)
        assert "second factor" in browser.text
        await browser.send("/sign-in", password=PASSWORD, otp="000000")
        assert "Incorrect code." in browser.text
        await browser.send("/sign-in", password=PASSWORD, otp=" ".join(show_code(secret, NOW + 60)))

        assert "Hello" in browser.text


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
    assert "already an account" in browser.text


async def test_closed_sign_up_is_forbidden(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, registration_open=False)

    async with open_browser(create_app(settings, database)) as browser:
        await browser.open("/sign-up")

    assert browser.page.status_code == 403
    assert "Sign-up is closed." in browser.text


async def test_user_input_is_escaped(browser: Browser) -> None:
    await browser.open("/sign-up")
    await browser.send("/sign-up", email=EMAIL, password=PASSWORD, name="<script>alert(1)</script>")
    await browser.sign_in(EMAIL)

    assert "<script" not in browser.text
    assert "&lt;script&gt;" in browser.text


@pytest.mark.parametrize("path", ["/", "/forgot-password", "/sign-up"])
async def test_content_security_policy_forbids_other_sources_and_inline_code(browser: Browser, path: str) -> None:
    await browser.open(path)

    assert browser.page.headers["content-security-policy"] == POLICY
    assert not re.search(r"<script|<style|\sstyle=|\son[a-z]+=", browser.text)
    assert browser.page.headers["cache-control"] == "no-store"


async def test_features_add_sources_to_the_content_security_policy(settings: Settings, database: Database) -> None:
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
def test_sign_in_redirects_to_this_service_only(path: str) -> None:
    assert own_path(path) == "/"


async def test_sign_in_as_another_user_ends_the_previous_session(
    signed_in: Browser, connection: AsyncConnection
) -> None:
    other = f"{uuid4().hex}@example.com"
    await signed_in.client.post("/api/v1/users", json={"email": other, "password": PASSWORD})
    token = signed_in.find_form("/sign-out")["csrf_token"]

    await signed_in.client.post("/sign-in", data={"csrf_token": token, "email": other, "password": PASSWORD})

    await signed_in.open("/")
    assert f"Hello, {other}." in signed_in.text
    assert len((await connection.scalars(select(UserSession.id))).all()) == 1


async def test_static_files_have_hashed_names_and_are_cached_forever(browser: Browser) -> None:
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
    """Return the files that a deployment copies for the web server."""
    command = [sys.executable, "-m", "app.web.assets", str(tmp_path)]
    subprocess.run(command, check=True)  # noqa: S603  # fixed
    return {file.name: file.read_bytes() for file in tmp_path.iterdir()}


async def test_published_files_include_all_that_pages_reference(browser: Browser, published: dict[str, bytes]) -> None:
    await browser.open("/")

    named = set(re.findall(r'"/static/([^"]+)"', browser.text))
    assert named
    assert named <= set(published)
    for name, content in published.items():
        assert (await browser.client.get(f"/static/{name}")).content == content


async def test_not_found_is_a_page_for_browsers_and_a_problem_document_for_programs(browser: Browser) -> None:
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


async def test_every_referenced_text_exists() -> None:
    sources = [*LOCALES.parent.rglob("*.html"), *LOCALES.parent.rglob("*.py")]
    code = "".join(source.read_text(encoding="utf-8") for source in sources)
    texts = Translations(LOCALES / "en.toml")

    named = set(re.findall(r"""\bt\(["']([a-z_.]+)["']|["'](flash\.[a-z_]+)["']|title=["']([a-z_.]+)["']""", code))

    keys = {next(filter(None, groups)) for groups in named}
    assert len(keys) > 20
    for key in keys:
        assert texts(key, name="Ada", status=404)


def test_language_without_a_file_is_refused_at_start() -> None:
    with pytest.raises(ValidationError, match="must be the name of a file in app/web/locales"):
        WebSettings(_env_file=None, web_language="xx")


@pytest.mark.parametrize("locale", sorted(LOCALES.iterdir()), ids=lambda path: path.stem)
def test_every_language_has_every_text(locale: Path) -> None:
    assert Translations(locale).gaps == []


SIGN_UP = '[sign_up]\ntitle = "Konto anlegen"\n'
BROKEN_TEXTS = {
    "empty file": ("", "sign_up.title is missing"),
    "not TOML": ("[sign_up\ntitle =", "the file cannot be read (Expected"),
    "not UTF-8": (b'[sign_up]\ntitle = "\xff"', "the file cannot be read (must be UTF-8)"),
    "an empty text": ('[sign_up]\ntitle = " "', "sign_up.title is missing"),
    "a number": ("[sign_up]\ntitle = 3", "sign_up.title is missing"),
    "a table": ('[sign_up.title]\na = "b"', "sign_up.title is missing"),
    "a text outside a table": ('sign_up = "x"', "sign_up is not a text of the pages"),
    "an unknown text": (SIGN_UP + 'titel = "x"', "sign_up.titel is not a text of the pages"),
    "another placeholder": ('[home]\nhello = "Hallo, {nam}."', "home.hello must have the placeholders"),
    "a number as placeholder": ('[home]\nhello = "Hallo, {}."', "home.hello must have the placeholders"),
    "an attribute": ('[home]\nhello = "Hallo, {name.x}."', "home.hello must have the placeholders"),
    "a format": ('[home]\nhello = "Hallo, {name:d}."', "home.hello must have the placeholders"),
    "no placeholder": ('[home]\nhello = "Hallo."', "home.hello must have the placeholders"),
    "an unclosed brace": ('[home]\nhello = "Hallo, {name"', "home.hello must have the placeholders"),
    "an extra placeholder": (SIGN_UP + 'sign_in_instead = "{name}"', "sign_up.sign_in_instead must have the placeh"),
    "errors not a table": ('errors = "x"', "errors must be a table"),
    "an error not a text": ("[errors]\nincorrect-code = 3", "errors.incorrect-code is missing"),
    "an error with an attribute": (
        '[errors]\nbusy = "{detail.x}"',
        "errors.busy must have placeholders such as {detail}",
    ),
    "an error with a format": ('[errors]\nbusy = "{detail:d}"', "errors.busy must have placeholders"),
    "an error with a number": ('[errors]\nbusy = "{0}"', "errors.busy must have placeholders"),
    "an error with an unclosed brace": ('[errors]\nbusy = "{"', "errors.busy must have placeholders"),
}


@pytest.mark.parametrize(("content", "gap"), BROKEN_TEXTS.values(), ids=BROKEN_TEXTS)
async def test_missing_texts_fall_back_to_english(
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
    english = Translations(LOCALES / "en.toml")

    async with open_client(create_app(settings.join(spoken), database)) as client:
        page = await client.get("/sign-up")

    (note,) = spoken.notes
    (warning,) = [line for line in logs.getvalue().splitlines() if "English stands in" in line]
    assert "app/web/locales/xx.toml" in note
    assert gap in note
    assert json.loads(warning)["level"] == "warning"
    assert page.status_code == 200
    assert english("sign_up.sign_in_instead") in page.text
    assert '<html lang="xx"' in page.text
    assert Translations(spoken.locale)("home.hello", name="Ada") == "Hello, Ada."


def test_existing_texts_are_used_although_others_are_missing(tmp_path: Path) -> None:
    file = tmp_path / "xx.toml"
    file.write_text(SIGN_UP + '[home]\nhello = "{name}, hallo."\n', encoding="utf-8")

    texts = Translations(file)

    assert (texts("sign_up.title"), texts("home.hello", name="Ada")) == ("Konto anlegen", "Ada, hallo.")


def test_unreadable_english_texts_are_refused_at_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "en.toml").write_text("[sign_up\n", encoding="utf-8")
    monkeypatch.setattr("app.web.i18n.ENGLISH", tmp_path / "en.toml")

    with pytest.raises(ValidationError, match=r"needs the English texts in app/web/locales/en\.toml"):
        WebSettings(_env_file=None)


def test_errors_are_translated_by_their_code(tmp_path: Path) -> None:
    file = tmp_path / "xx.toml"
    file.write_text('[errors]\nincorrect-code = "Nix da."\nbusy = "{detail} ({retry_after} s)"\n', encoding="utf-8")

    translations = Translations(file)

    assert translations.error("incorrect-code", "Incorrect code.") == "Nix da."
    assert translations.error("incorrect-code", "A better sentence.") == "Nix da."
    assert translations.error("busy", "Busy.", retry_after="3") == "Busy. (3 s)"


def test_error_falls_back_to_english_without_a_text_or_a_value(tmp_path: Path) -> None:
    file = tmp_path / "xx.toml"
    file.write_text('[errors]\nbusy = "Bitte in {retry_after} s wieder."\n', encoding="utf-8")

    translations = Translations(file)

    assert translations.error("conflict", "Something else.") == "Something else."
    assert translations.error("busy", "Busy.") == "Busy."
    assert translations.error("busy", "Busy.", retry_after=None) == "Busy."
