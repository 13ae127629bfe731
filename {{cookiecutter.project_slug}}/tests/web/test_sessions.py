"""Sessions of browsers: how they are extended, and how they end."""

import time
from uuid import UUID, uuid4

import httpx2
import pytest
from itsdangerous import TimestampSigner
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import UserSession
from app.accounts.scopes import Scope, format_scope, list_allowed
from app.core.config.settings import Settings
from app.web.signing import Signer
from tests.support.accounts import PASSWORD, Account, request_token
from tests.support.browsing import EMAIL, Browser, list_cookies


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
