"""HTTP behaviour of all routes, mounts and static files: HEAD, OPTIONS, Allow, UTF-8, slashes and body limits."""

import asyncio
import re
from collections.abc import Iterable, Sequence
from email.message import Message as MimeMessage
from urllib.parse import quote, unquote_to_bytes

from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware, RequestBodyLimitResponder
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import BaseRoute, Host, Match, Mount, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.requests import FORM

NOT_ASCII = re.compile(rb"[\x80-\xff]")
BAD_REQUEST, UNAUTHORIZED = 400, 401
# Static files and other applications that are mounted have no list of methods.
METHODS_OF_FILES = frozenset({"GET"})


class HeadMiddleware:
    """Answer HEAD as GET, without the body. A stream ends at once, as if its client had gone."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        has_body, is_answered = True, asyncio.Event()

        async def receive_until_answered() -> Message:
            nonlocal has_body
            if has_body:
                message = await receive()
                has_body = bool(message.get("more_body"))
                return message
            await is_answered.wait()
            return {"type": "http.disconnect"}

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})
                is_answered.set()
            # Yield, so that the stream can be cancelled.
            await asyncio.sleep(0)

        # Starlette watches for disconnects while streaming only with an ASGI version below 2.4.
        asgi = {**scope.get("asgi", {}), "spec_version": "2.3"}
        # A copy: servers look at the method when they send the answer.
        get_scope = {**scope, "method": "GET", "asgi": asgi}
        try:
            await self.app(get_scope, receive_until_answered, send_head)
        finally:
            # The metrics are further out and count by endpoint.
            if "endpoint" in get_scope:
                scope["endpoint"] = get_scope["endpoint"]


def allowed_methods(scope: Scope, routes: Sequence[BaseRoute]) -> list[str]:
    """List the methods that any route takes at this path, for the header Allow."""
    # A mount has moved the root of its routes.
    root_path = scope.get("app_root_path", scope.get("root_path", ""))
    methods = set(_methods_at({**scope, "root_path": root_path}, routes))
    return sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))


def _methods_at(scope: Scope, routes: Sequence[BaseRoute]) -> Iterable[str]:
    for route in iter_route_contexts(routes):
        match, child_scope = route.matches(scope)
        if match is Match.NONE:
            continue
        if isinstance(route.original_route, Mount | Host):
            yield from set(_methods_at({**scope, **child_scope}, route.routes)) or METHODS_OF_FILES
        else:
            yield from route.methods or ()


def redirect_slashes(router: Router) -> ASGIApp:
    """Redirect a missing or superfluous slash at the end, with a relative Location.

    Starlette builds an absolute one from the Host header, where a proxy may leave the port out.
    """

    async def redirect(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        # Browsers read //x as a host, and patterns of routes also match before a line break at the end.
        is_local = other != "" and not other.startswith("//") and not other.endswith("\n")
        if scope["type"] != "http" or not is_local or not _is_routed({**scope, "path": other}, router.routes):
            await router.not_found(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        location = quote(other, errors="replace") + (f"?{query}" if query else "")
        await RedirectResponse(location)(scope, receive, send)

    return redirect


def _is_routed(scope: Scope, routes: Sequence[BaseRoute]) -> bool:
    return any(route.matches(scope)[0] is not Match.NONE for route in routes)


class Utf8Middleware:
    """Percent-encode raw UTF-8 in queries and forms, and refuse forms in other encodings with 400.

    Starlette decodes raw bytes as Latin-1, and replaces invalid UTF-8.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # A route's pattern would match before a line break at the end.
        if scope["path"].endswith("\n"):
            await PlainTextResponse("Not Found", 404)(scope, receive, send)
            return
        scope["query_string"] = _percent_encode(scope["query_string"])
        await self.app(scope, _FormReader(receive).read if _is_form(scope) else receive, send)


class _FormReader:
    """Buffers the whole form: the bytes of a character may arrive in separate messages."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._is_read = False

    async def read(self) -> Message:
        if self._is_read:
            return await self._receive()
        body, has_more = bytearray(), True
        while has_more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
        self._is_read = True
        form = bytes(body)
        require_utf8(form, "form")
        return {"type": "http.request", "body": _percent_encode(form)}


def require_utf8(encoded: bytes, name: str) -> None:
    """Raise HTTPException for a query or a form that is not UTF-8."""
    try:
        unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError as error:
        raise HTTPException(BAD_REQUEST, f"The {name} is not UTF-8: send it in that encoding.") from error


def _percent_encode(text: bytes) -> bytes:
    return NOT_ASCII.sub(lambda match: b"%%%02X" % ord(match[0]), text)


def _is_form(scope: Scope) -> bool:
    types = (value.decode("latin-1") for name, value in scope["headers"] if name == b"content-type")
    return read_media_type(next(types, "")) == FORM


def read_media_type(content_type: str) -> str:
    """Return the media type in lower case and without parameters; `text/plain` if the header is empty or invalid."""
    # Most requests have no body.
    if not content_type:
        return "text/plain"
    message = MimeMessage()
    message["content-type"] = content_type
    return message.get_content_type()


class BodyLimitMiddleware(RequestBodyLimitMiddleware):
    """Refuse larger bodies with 413, unless the route answers 401."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            await _BodyLimitResponder(self.app, self.max_body_size)(scope, receive, send)


class _BodyLimitResponder(RequestBodyLimitResponder):
    async def send_with_limit(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == UNAUTHORIZED:
            self.response_started = True
            await self.send(message)
        else:
            await super().send_with_limit(message)
