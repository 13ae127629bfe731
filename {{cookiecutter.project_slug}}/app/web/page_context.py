"""The context of a page: its cookies, the signed-in user, and the methods that build its responses."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from app.accounts import identity_cache
from app.accounts.models import Caller, UserRecord
from app.accounts.sessions import service as sessions
from app.core.config.settings import Settings
from app.core.db.session import commit_and_release
from app.core.dependencies import ClientInfoDep, SessionDep
from app.core.errors import AppError
from app.core.http.request import SAFE_METHODS
from app.web.cookies import Cookies
from app.web.csrf import create_csrf_token
from app.web.pages import Web, page_headers
from app.web.request import WebRequest

# If a session cookie is older than this, it is replaced, and its session is extended.
RENEWAL_SECONDS = 3600
FLASH_SECONDS = 60
SESSION, ANONYMOUS_ID, FLASH = "session", "anonymous_id", "flash"


@dataclass(frozen=True)
class SessionCookie:
    """The content of the session cookie. The session's row alone decides whether the user is signed in."""

    user_id: UUID
    session_id: UUID

    def __str__(self) -> str:
        return f"{self.user_id}:{self.session_id}"

    @classmethod
    def parse(cls, text: str) -> "SessionCookie":
        user_id, session_id = text.split(":")
        return cls(UUID(user_id), UUID(session_id))


@dataclass
class PageContext:
    request: WebRequest
    web: Web
    settings: Settings
    cookies: Cookies
    # While nobody is signed in, CSRF tokens and passkey challenges are bound to this id of the browser.
    anonymous_id: str
    session_cookie: SessionCookie | None = None
    caller: Caller | None = None
    # Additional sources from which this page may load, by directive of the Content-Security-Policy.
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def user(self) -> UserRecord | None:
        return self.caller.user if self.caller else None

    @property
    def csrf_binding(self) -> str:
        return str(self.session_cookie.session_id) if self.session_cookie else self.anonymous_id

    def set_session(self, user_id: UUID, session_id: UUID) -> None:
        """Set the session cookie; the session itself must exist."""
        self.session_cookie = SessionCookie(user_id, session_id)
        self.cookies.set(SESSION, str(self.session_cookie), self.settings.refresh_token_lifetime_seconds)

    def clear_session(self) -> None:
        """Delete the session cookie; the session itself must have ended."""
        self.session_cookie = self.caller = None
        self.cookies.delete(SESSION)

    def render(self, template: str, status: int = 200, **values: Any) -> Response:  # noqa: ANN401  # passed to Jinja
        """Render a template of app/web, with the flash message of the redirect that led here."""
        flash = self.cookies.read(FLASH)
        if flash is not None:
            self.cookies.delete(FLASH)
        csrf_token = create_csrf_token(self.web.signer, self.csrf_binding)
        values |= {"user": self.user, "csrf_token": csrf_token, "flash": flash and flash.value}
        content = self.web.render(template, path=self.request.url.path, **values)
        headers = page_headers(self.request.state["content_security_policy"], self.sources)
        return self.cookies.apply_to(HTMLResponse(content, status, headers))

    def redirect(self, path: str, flash: str | None = None) -> Response:
        """Respond to a form with a redirect, so that reloading the page does not send the form again."""
        if flash is not None:
            self.cookies.set(FLASH, flash, FLASH_SECONDS)
        return self.cookies.apply_to(RedirectResponse(path, 303, {"Cache-Control": "no-store"}))


class SignInRequiredError(AppError):
    """Redirects to the sign-in page, which leads back to this page after the sign-in."""

    status = 401
    code = "sign-in-required"

    def __init__(self, page: PageContext) -> None:
        super().__init__("Sign in to continue.")
        self.page = page


async def redirect_to_sign_in(request: Request, error: SignInRequiredError) -> Response:
    following = f"?next={request.url.path}" if request.method in SAFE_METHODS else ""
    return error.page.redirect(f"/sign-in{following}", "flash.sign_in_first")


async def get_page_context(request: WebRequest, session: SessionDep, client: ClientInfoDep) -> PageContext:
    """Return the context of the requested page.

    The session is read from the database at each request, so that an ended session is refused at once.
    """
    web, settings = request.state["web"], request.state["settings"]
    cookies = Cookies(request, settings, web.signer)
    anonymous_id = cookies.read(ANONYMOUS_ID)
    page = PageContext(request, web, settings, cookies, anonymous_id.value if anonymous_id else secrets.token_hex(16))
    if anonymous_id is None or anonymous_id.signed_with_old_key:
        cookies.set(ANONYMOUS_ID, page.anonymous_id, settings.refresh_token_lifetime_seconds)
    signed = cookies.read(SESSION)
    if signed is None:
        return page
    page.session_cookie = cookie = SessionCookie.parse(signed.value)
    page.caller = await identity_cache.find_caller(session, cookie.user_id, cookie.session_id)
    request.state["actor_id"] = page.caller.user.id if page.caller else None
    is_due = signed.signed_with_old_key or time.time() - signed.signed_at > RENEWAL_SECONDS
    if is_due and page.caller is not None and request.method in SAFE_METHODS:
        await commit_and_release(session)
        async with request.state["database"].write() as writing:
            await sessions.extend_session(writing, settings, cookie.session_id, client)
        page.set_session(cookie.user_id, cookie.session_id)
    return page


PageContextDep = Annotated[PageContext, Depends(get_page_context)]


async def get_caller(page: PageContextDep) -> Caller:
    if page.caller is None:
        raise SignInRequiredError(page)
    return page.caller


CallerDep = Annotated[Caller, Depends(get_caller)]


async def get_current_user(caller: CallerDep) -> UserRecord:
    return caller.user


CurrentUserDep = Annotated[UserRecord, Depends(get_current_user)]
