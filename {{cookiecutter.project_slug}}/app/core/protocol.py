"""HTTP behaviour of all routes, mounts and static files: HEAD, OPTIONS, Allow, paths, queries and body limits."""

import asyncio
import re
from binascii import a2b_qp
from collections.abc import Iterable, Sequence
from email.message import Message as MimeMessage
from urllib.parse import quote, quote_from_bytes

from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware, RequestBodyLimitResponder
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.routing import BaseRoute, Host, Match, Mount, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from app.core.requests import FORM

ASCII = bytes(range(128))
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
BARE_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
BAD_REQUEST, UNAUTHORIZED, URI_TOO_LONG, HEADERS_TOO_LARGE = 400, 401, 414, 431
# RFC 6455 §7.4.1
POLICY_VIOLATION = 1008
# A page's longest form has a text of 10,000 characters, each of up to 12 bytes when percent-encoded, and short fields.
MAX_FORM_BYTES = 128 * 1024
# Of a form or a query.
MAX_FIELDS = 200
# As nginx's large_client_header_buffers: one for the request line, and four in all.
MAX_TARGET_BYTES = 8 * 1024
MAX_HEADER_BYTES = 32 * 1024
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
        # Browsers read //x as a host.
        is_local = other != "" and not other.startswith("//")
        if scope["type"] != "http" or not is_local or not _is_routed({**scope, "path": other}, router.routes):
            await router.not_found(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        location = quote(other, errors="replace") + (f"?{query}" if query else "")
        await RedirectResponse(location)(scope, receive, send)

    return redirect


def _is_routed(scope: Scope, routes: Sequence[BaseRoute]) -> bool:
    return any(route.matches(scope)[0] is not Match.NONE for route in routes)


class RequestCheckMiddleware:
    """Refuse long targets and headers, and control characters in paths; percent-encode raw UTF-8 in queries.

    httptools has no limits, and Python's parsers of queries and cookies are slow with many fields.
    Patterns of routes match before a line break at the end. Starlette decodes raw bytes of queries as Latin-1.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = _check_request(scope["path"], scope["query_string"], scope["headers"])
        if refusal is None:
            scope["query_string"] = _percent_encode(scope["query_string"])
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(POLICY_VIOLATION)(scope, receive, send)
        else:
            await refusal(scope, receive, send)


def _check_request(path: str, query: bytes, headers: Iterable[tuple[bytes, bytes]]) -> PlainTextResponse | None:
    """Return the refusal of a request that breaks a rule."""
    if len(path) + len(query) > MAX_TARGET_BYTES:
        return PlainTextResponse(f"The path and the query must have at most {MAX_TARGET_BYTES} bytes.", URI_TOO_LONG)
    if query.count(b"&") >= MAX_FIELDS:
        return PlainTextResponse(f"The query must have at most {MAX_FIELDS} fields.", BAD_REQUEST)
    if CONTROL_CHARACTER.search(path):
        return PlainTextResponse("The path must not contain control characters.", BAD_REQUEST)
    if sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        return PlainTextResponse(f"The headers must have at most {MAX_HEADER_BYTES} bytes.", HEADERS_TOO_LARGE)
    return None


def require_utf8(query: bytes) -> None:
    """Raise HTTPException for a query that is not UTF-8."""
    try:
        percent_decode(query).decode()
    except UnicodeDecodeError as error:
        raise HTTPException(BAD_REQUEST, "The query is not UTF-8: send it in that encoding.") from error


def percent_decode(text: bytes) -> bytes:
    """Decode as browsers do: a percent sign without two hexadecimal digits stands for itself.

    `unquote_to_bytes` takes up to five times as long, and on Python 3.11 twice the memory.
    """
    escaped = BARE_PERCENT.sub(b"%25", text.replace(b"=", b"%3D"))
    # Quoted-printable is percent-encoding with another sign, and its decoder is written in C.
    return a2b_qp(escaped.replace(b"%", b"="))


def _percent_encode(query: bytes) -> bytes:
    encoded = query if query.isascii() else quote_from_bytes(query, ASCII).encode()
    # An exception for each of these is what makes Python's decoder slow.
    return BARE_PERCENT.sub(b"%25", encoded) if b"%" in encoded else encoded


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
    """Refuse larger bodies with 413, unless the route answers 401; forms have a lower limit of their own."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            limit = min(self.max_body_size, MAX_FORM_BYTES) if _is_form(scope) else self.max_body_size
            await _BodyLimitResponder(self.app, limit)(scope, receive, send)


class _BodyLimitResponder(RequestBodyLimitResponder):
    async def send_with_limit(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == UNAUTHORIZED:
            self.response_started = True
            await self.send(message)
        else:
            await super().send_with_limit(message)
