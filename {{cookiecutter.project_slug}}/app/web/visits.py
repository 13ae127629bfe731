"""Who looks at a page: the cookies, the session that they lead to, and the answers that carry them."""

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
from app.core.config import Settings
from app.core.database import SAFE_METHODS, Database, SessionDep, commit_and_release
from app.core.exceptions import AppError
from app.core.requests import OriginDep
from app.web.pages import Web, page_headers
from app.web.signing import Signed

# A cookie of this age, or of an earlier key, is replaced, and the session that it leads to extended.
RENEWAL_SECONDS = 3600
FLASH_SECONDS = 60
SESSION, VISITOR, FLASH = "session", "visitor", "flash"


@dataclass(frozen=True)
class SessionCookie:
    """What finds the row of the session; only that row says that somebody is signed in."""

    user_id: UUID
    session_id: UUID
    issued_at: int

    def __str__(self) -> str:
        return f"{self.user_id}:{self.session_id}:{self.issued_at}"

    @classmethod
    def parse(cls, text: str) -> "SessionCookie":
        user_id, session_id, issued_at = text.split(":")
        return cls(UUID(user_id), UUID(session_id), int(issued_at))


@dataclass
class Visit:
    request: Request
    web: Web
    settings: Settings
    cookie: SessionCookie | None
    # What the forms of who is not signed in are bound to.
    visitor: str
    caller: Caller | None = None
    # Cookies for the answer; None deletes one.
    changes: dict[str, tuple[str, int] | None] = field(default_factory=dict)
    # What the page may load besides, by directive of the Content-Security-Policy.
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def user(self) -> UserRecord | None:
        return self.caller.user if self.caller else None

    @property
    def csrf_purpose(self) -> str:
        return f"form of {self.cookie.session_id if self.cookie else self.visitor}"

    def make_csrf_token(self) -> str:
        """Another one each time: an answer that is compressed must not tell it bit by bit."""
        return self.web.signer.sign(self.csrf_purpose, secrets.token_urlsafe(8))

    def owns_csrf_token(self, token: str) -> bool:
        return self.web.signer.read(self.csrf_purpose, token) is not None

    def sign_in(self, user_id: UUID, session_id: UUID) -> None:
        self.cookie = SessionCookie(user_id, session_id, int(time.time()))
        self.changes[SESSION] = (str(self.cookie), self.settings.refresh_token_lifetime_seconds)

    def sign_out(self) -> None:
        self.cookie = self.caller = None
        self.changes[SESSION] = None

    def page(self, template: str, status: int = 200, **values: Any) -> Response:  # noqa: ANN401  # to Jinja
        """Render a template of app/web; the message that the last answer left is shown once."""
        flash = read_cookie(self.request, self.web, self.settings, FLASH)
        if flash is not None:
            self.changes[FLASH] = None
        values |= {"user": self.user, "csrf_token": self.make_csrf_token(), "flash": flash and flash.text}
        content = self.web.render(template, path=self.request.url.path, **values)
        headers = page_headers(self.request.state.content_security_policy, self.sources)
        return self.carry(HTMLResponse(content, status, headers))

    def go(self, path: str, flash: str | None = None) -> Response:
        """Answer a form: the browser gets another page, and a reload posts nothing again."""
        if flash is not None:
            self.changes[FLASH] = (flash, FLASH_SECONDS)
        return self.carry(RedirectResponse(path, 303, {"Cache-Control": "no-store"}))

    def carry(self, response: Response) -> Response:
        """Set the cookies that have changed."""
        is_secure = comes_securely(self.request, self.settings)
        for purpose, change in self.changes.items():
            text, max_age = change or ("", 0)
            value = self.web.signer.sign(purpose, text) if change else ""
            name = cookie_name(purpose, is_secure=is_secure)
            response.set_cookie(name, value, max_age, secure=is_secure, httponly=True, samesite="lax")
        return response


class LogInRequiredError(AppError):
    """Whoever asks for a page is shown the way to it."""

    status = 401

    def __init__(self, visit: Visit) -> None:
        super().__init__("Log in first.")
        self._visit = visit

    def to_response(self, request: Request) -> Response:
        following = f"?next={request.url.path}" if request.method in SAFE_METHODS else ""
        return self._visit.go(f"/log-in{following}", "flash.log_in_first")


def comes_securely(request: Request, settings: Settings) -> bool:
    """On the way to a developer's own machine there may be no TLS; elsewhere cookies need it."""
    return settings.environment.is_deployed or request.url.scheme == "https"


def cookie_name(purpose: str, *, is_secure: bool) -> str:
    """Browsers take the prefix from this host alone, over TLS: no neighbouring domain plants such a cookie."""
    return f"__Host-{purpose}" if is_secure else purpose


def read_cookie(request: Request, web: Web, settings: Settings, purpose: str) -> Signed | None:
    signed = request.cookies.get(cookie_name(purpose, is_secure=comes_securely(request, settings)), "")
    return web.signer.read(purpose, signed)


async def get_visit(request: Request, session: SessionDep, origin: OriginDep) -> Visit:
    """Look the session up at each request, as for tokens: what was ended is out at the next one."""
    web: Web = request.state.web
    settings: Settings = request.state.settings
    signed = read_cookie(request, web, settings, SESSION)
    cookie = SessionCookie.parse(signed.text) if signed else None
    visitor = read_cookie(request, web, settings, VISITOR)
    visit = Visit(request, web, settings, cookie, visitor.text if visitor else secrets.token_hex(16))
    if visitor is None or visitor.by_predecessor:
        visit.changes[VISITOR] = (visit.visitor, settings.refresh_token_lifetime_seconds)
    if signed is None or visit.cookie is None:
        return visit
    visit.caller = await identity_cache.find_caller(session, visit.cookie.user_id, visit.cookie.session_id)
    request.state.actor_id = visit.caller.user.id if visit.caller else None
    is_due = signed.by_predecessor or time.time() - visit.cookie.issued_at > RENEWAL_SECONDS
    if is_due and visit.user is not None and request.method in SAFE_METHODS:
        await commit_and_release(session)
        database: Database = request.state.database
        async with database.write() as writing:
            await sessions.extend_session(writing, settings, visit.cookie.session_id, origin)
        visit.sign_in(visit.cookie.user_id, visit.cookie.session_id)
    return visit


VisitDep = Annotated[Visit, Depends(get_visit)]


async def get_caller(visit: VisitDep) -> Caller:
    if visit.caller is None:
        raise LogInRequiredError(visit)
    return visit.caller


CallerDep = Annotated[Caller, Depends(get_caller)]


async def get_person(caller: CallerDep) -> UserRecord:
    return caller.user


PersonDep = Annotated[UserRecord, Depends(get_person)]
