"""Pages of the account: profile, password, second factor, sessions, deletion, recovery by e-mail."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi import FastAPI
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts import one_time_tokens
from app.accounts.emails import LIFETIMES, EmailKind, Purpose
from app.accounts.models import User
from app.application import email_renderers
from app.core.audit.models import AuditEvent
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.email.message import QueuedEmail
from app.outbox.models import OutgoingEmail
from tests.support.accounts import PASSWORD, Account, request_token
from tests.support.applications import create_app
from tests.support.browsing import ORIGIN, Browser, open_browser
from tests.support.clock import Clock
from tests.support.databases import PRODUCTION, make_settings
from tests.support.second_factor import show_code

EMAIL = "ada@example.com"
NEW_PASSWORD = "another horse, another staple"


@pytest.fixture
async def browser(app: FastAPI) -> AsyncIterator[Browser]:
    async with open_browser(app) as browser:
        await browser.enter(EMAIL)
        yield browser


async def make_token(database: Database, purpose: Purpose, address: str = EMAIL) -> str:
    """Return a token as an e-mail would contain it."""
    async with database.write() as session:
        user_id = (await session.execute(select(User.id).where(User.email == EMAIL))).scalar_one()
        return await one_time_tokens.create_token(session, purpose, user_id, address, lifetime=LIFETIMES[purpose])


async def render_message(database: Database, settings: Settings, kind: EmailKind) -> str:
    """Return the text of the e-mail to the account or, for a change, to the new address."""
    address = "new@example.com" if kind is EmailKind.EMAIL_CHANGE else EMAIL
    async with database.write() as session:
        user_id = (await session.execute(select(User.id).where(User.email == EMAIL))).scalar_one()
        email = QueuedEmail(id=uuid4(), kind=kind, address=address, account_id=user_id)
        rendered = await email_renderers()[kind](session, settings, email)
    assert rendered is not None
    return rendered.text


async def list_messages(connection: AsyncConnection) -> list[str]:
    return list((await connection.scalars(select(OutgoingEmail.kind))).all())


async def test_name_is_changed(browser: Browser) -> None:
    await browser.open("/account")
    await browser.send("/account", name="Ada")

    assert "Saved." in browser.text
    assert browser.find_form("/account")["name"] == "Ada"


async def test_password_is_changed_and_other_sessions_end(
    app: FastAPI, browser: Browser, connection: AsyncConnection
) -> None:
    async with open_browser(app) as other:
        await other.sign_in(EMAIL)
        copied = dict(browser.client.cookies)
        await browser.open("/account/password")
        await browser.send("/account/password", current_password=PASSWORD, new_password=NEW_PASSWORD)
        await other.open("/account")

        assert "Your password was changed." in browser.text
        assert other.path == "/sign-in"
        # The session in a copy of the browser's own cookies has also ended.
        other.client.cookies.clear()
        other.client.cookies.update(copied)
        await other.open("/account")
        assert other.path == "/sign-in"
        await browser.open("/account/sessions")
        assert browser.text.count("(this session)") == 1
    events = (await connection.scalars(select(AuditEvent.event))).all()
    assert "password.changed" in events
    assert (await request_token(browser.client, username=EMAIL, password=NEW_PASSWORD)).status_code == 200


@pytest.mark.usefixtures("clock")
async def test_current_password_is_required_and_guessing_it_is_throttled(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, throttling=True, throttle_account_attempts=2)

    async with open_browser(create_app(settings, database)) as browser:
        await browser.enter(EMAIL)
        await browser.open("/account/password")
        statuses = []
        for _ in range(3):
            await browser.send("/account/password", current_password="wrong", new_password=NEW_PASSWORD)
            statuses.append(browser.page.status_code)

        assert statuses == [422, 422, 429]
        assert NEW_PASSWORD not in browser.text
        assert (await request_token(browser.client, username=EMAIL, password=PASSWORD)).status_code == 200


async def test_sessions_are_listed_and_ended(app: FastAPI, browser: Browser) -> None:
    async with open_browser(app) as other:
        await other.sign_in(EMAIL)
        await browser.open("/account/sessions")
        (session_id,) = browser.list_ids('href="/account/sessions/{}/end')
        assert browser.text.count("(this session)") == 1
        end = f"/account/sessions/{session_id}/end"
        await browser.open(end)
        await browser.send(end, current_password="wrong")
        assert browser.page.status_code == 422

        await browser.send(end, current_password=PASSWORD)

        assert "The session was ended." in browser.text
        assert browser.list_ids('href="/account/sessions/{}/end') == []
        await other.open("/account")
        assert other.path == "/sign-in"


async def test_ending_own_session_signs_out(browser: Browser) -> None:
    await browser.open("/account/sessions")
    (session_id,) = browser.list_ids('action="/account/sessions/{}/end')

    await browser.send(f"/account/sessions/{session_id}/end")

    assert browser.path == "/"
    assert "You are signed out." in browser.text


async def test_session_of_another_user_is_not_found(app: FastAPI, browser: Browser) -> None:
    await browser.open("/account/sessions")
    (session_id,) = browser.list_ids('action="/account/sessions/{}/end')

    async with open_browser(app) as other:
        await other.enter("eve@example.com")
        token = other.find_form("/sign-out")
        answer = await other.client.post(f"/account/sessions/{session_id}/end", data=token)

    assert answer.status_code == 404
    await browser.open("/account")
    assert browser.path == "/account"


async def test_refused_form_is_audited_with_its_user(browser: Browser, connection: AsyncConnection) -> None:
    answer = await browser.client.post("/account/delete", data={"csrf_token": "of another site"})

    assert answer.status_code == 403
    person = (await connection.scalars(select(User.id).where(User.email == EMAIL))).one()
    refused = select(AuditEvent.actor_id).where(AuditEvent.event == "request.forbidden")
    assert (await connection.scalars(refused)).all() == [person]


async def test_second_factor_is_turned_on_and_off(
    browser: Browser,
    clock: Clock,
) -> None:
    await browser.open("/account/second-factor")
    await browser.send("/account/second-factor/begin", current_password="wrong")
    assert "Incorrect current password." in browser.text
    await browser.send("/account/second-factor/begin", current_password=PASSWORD)
    (secret,) = re.findall(r"<code>([A-Z2-7]{32})</code>", browser.text)

    await browser.send("/account/second-factor/confirm", code="000000")
    assert "Incorrect second factor: the code is wrong" in browser.text
    assert secret in browser.text
    await browser.send("/account/second-factor/confirm", code="12345")
    assert "must be the 6-digit code from the authenticator app" in browser.text
    assert "maxlength" not in browser.text
    code = show_code(secret, clock.now)
    await browser.send("/account/second-factor/confirm", code=f"{code[:3]} {code[3:]} ")
    recovery_codes = re.findall(r"<code>([A-Z2-7-]{19})</code>", browser.text)
    assert len(recovery_codes) == 10

    await browser.open("/account/second-factor")
    await browser.send("/account/second-factor/disable", current_password=PASSWORD)
    assert "enter a code" in browser.text
    await browser.send("/account/second-factor/disable", current_password=PASSWORD, otp=recovery_codes[0])
    assert "Your authenticator app is no longer a second factor of your account." in browser.text


async def test_account_is_deleted(browser: Browser) -> None:
    await browser.open("/account/delete")
    await browser.send("/account/delete")
    assert browser.page.status_code == 422
    await browser.send("/account/delete", current_password=PASSWORD)

    assert "Your account was deleted." in browser.text
    assert (await request_token(browser.client, username=EMAIL, password=PASSWORD)).status_code == 400


async def test_last_administrator_cannot_be_deleted(app: FastAPI, admin: Account) -> None:
    async with open_browser(app) as browser:
        await browser.sign_in(admin.email)
        await browser.open("/account/delete")
        await browser.send("/account/delete", current_password=PASSWORD)

        assert browser.page.status_code == 409
        assert "last administrator" in browser.text
        await browser.open("/account")
        assert browser.path == "/account"


async def test_new_address_takes_effect_when_confirmed(
    browser: Browser, database: Database, connection: AsyncConnection
) -> None:
    await browser.open("/account/email")
    await browser.send("/account/email", new_email="new@example.com", current_password=PASSWORD)
    assert "Check your e-mail for instructions" in browser.text
    assert "email change" in await list_messages(connection)

    token = await make_token(database, Purpose.CHANGE_EMAIL, "new@example.com")
    await browser.open("/verify-email")
    await browser.send("/verify-email", token=f" {token} ", password=PASSWORD)

    assert "Your e-mail address is confirmed." in browser.text
    await browser.open("/account")
    assert "new@example.com" in browser.text


async def test_forgotten_password_is_reset(
    app: FastAPI, browser: Browser, database: Database, connection: AsyncConnection
) -> None:
    async with open_browser(app) as forgetful:
        await forgetful.open("/forgot-password")
        await forgetful.send("/forgot-password", email=EMAIL)
        assert "password reset" in await list_messages(connection)

        await forgetful.open("/reset-password")
        await forgetful.send("/reset-password", token="x" * 43, new_password=NEW_PASSWORD)
        assert forgetful.page.status_code == 422
        token = await make_token(database, Purpose.RESET_PASSWORD)
        await forgetful.send("/reset-password", token=token, new_password=NEW_PASSWORD)
        assert "Your password was changed." in forgetful.text
        await forgetful.sign_in(EMAIL, NEW_PASSWORD)

    await browser.open("/account")
    assert browser.path == "/sign-in"


async def test_password_reset_does_not_reveal_whether_an_account_exists(app: FastAPI, browser: Browser) -> None:
    pages = []
    for address in (EMAIL, "nobody@example.com"):
        async with open_browser(app) as stranger:
            await stranger.open("/forgot-password")
            await stranger.send("/forgot-password", email=address)
            pages.append((stranger.path, re.sub(r'(name="csrf_token" value=")[^"]+', r"\1", stranger.text)))

    assert pages[0] == pages[1]


async def test_verified_sign_up_does_not_reveal_whether_an_account_exists(
    migrated_url: str, database: Database
) -> None:
    settings = make_settings(migrated_url, email_verification_required=True)
    pages = []

    async with open_browser(create_app(settings, database)) as browser:
        for _ in range(2):
            await browser.open("/sign-up")
            await browser.send("/sign-up", email=EMAIL, password=PASSWORD)
            pages.append((browser.path, re.sub(r'(name="csrf_token" value=")[^"]+', r"\1", browser.text)))
        await browser.open("/verify-email")
        await browser.send("/verify-email", token=await make_token(database, Purpose.VERIFY_EMAIL), password=PASSWORD)
        await browser.sign_in(EMAIL)

    assert pages[0] == pages[1]
    assert pages[0][0] == "/sign-in"


@pytest.mark.parametrize("kind", [EmailKind.VERIFICATION, EmailKind.PASSWORD_RESET, EmailKind.EMAIL_CHANGE])
async def test_link_in_an_email_fills_in_the_code(
    browser: Browser, settings: Settings, database: Database, kind: EmailKind
) -> None:
    text = await render_message(database, settings.model_copy(update={"public_url": ORIGIN}), kind)
    (link,) = re.findall(rf"(?m)^{ORIGIN}(/[a-z-]+\?token=[A-Za-z0-9_-]" + "{43})$", text)
    await browser.open(link)
    assert 'type="hidden" name="token"' in browser.text

    typed = {"new_password": NEW_PASSWORD, "password": PASSWORD}
    wanted = typed.keys() & browser.find_form(browser.path).keys()
    await browser.send(browser.path, **{name: typed[name] for name in wanted})

    assert re.search("Your password was changed|Your e-mail address is confirmed", browser.text)


async def test_used_link_is_refused_and_the_code_field_shown(
    browser: Browser, settings: Settings, database: Database
) -> None:
    text = await render_message(database, settings.model_copy(update={"public_url": ORIGIN}), EmailKind.VERIFICATION)
    (link,) = re.findall(rf"(?m)^{ORIGIN}(/\S+)$", text)
    await browser.open(link)
    await browser.send("/verify-email", password=PASSWORD)
    assert "Your e-mail address is confirmed." in browser.text

    await browser.open(link)
    await browser.send("/verify-email", password=PASSWORD)

    assert browser.page.status_code == 422
    assert '<label for="token">' in browser.text


async def test_link_leads_to_the_application_of_account_pages_url(
    browser: Browser, settings: Settings, database: Database
) -> None:
    assert browser.path == "/"
    elsewhere = settings.model_copy(update={"account_pages_url": "https://app.example.com"})

    text = await render_message(database, elsewhere, EmailKind.PASSWORD_RESET)

    assert re.search(r"(?m)^https://app\.example\.com/reset-password#token=[A-Za-z0-9_-]{43}$", text)


@pytest.mark.usefixtures("clock")
async def test_guessing_codes_is_throttled(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, throttling=True, throttle_address_attempts=1)

    async with open_browser(create_app(settings, database)) as browser:
        await browser.open("/verify-email")
        await browser.send("/verify-email", token="x" * 43, password=PASSWORD)
        assert browser.page.status_code == 422
        await browser.send("/verify-email", token="y" * 43, password=PASSWORD)

        assert browser.page.status_code == 429


@pytest.mark.parametrize(
    "path",
    [
        *("/account", "/account/password", "/account/email", "/account/sessions", "/account/second-factor"),
        "/account/delete",
    ],
)
async def test_account_pages_require_sign_in(app: FastAPI, settings: Settings, path: str) -> None:
    async with open_browser(app) as stranger:
        await stranger.open(path)

    assert stranger.path == "/sign-in"
    assert stranger.find_form("/sign-in")["next"] == path


async def test_sign_in_is_required_before_missing_mail_is_reported(
    migrated_url: str, database: Database, tmp_path: Path
) -> None:
    settings = make_settings(
        migrated_url,
        **PRODUCTION,
        storage_folder=tmp_path,
    )
    async with open_browser(create_app(settings, database)) as browser:
        await browser.open("/account/email")

    assert browser.path == "/sign-in"
