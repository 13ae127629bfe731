import re
from collections.abc import Iterable
from http import HTTPStatus
from itertools import chain
from urllib.parse import quote_from_bytes

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from app.core.http.parsing import BARE_PERCENT, MAX_FIELDS

ASCII = bytes(range(128))
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
# RFC 6455 §7.4.1
POLICY_VIOLATION = 1008
# As in deploy/nginx/http.conf: nginx has four buffers of 8 KiB for the headers, one of which holds the request line.
MAX_TARGET_BYTES = 8 * 1024
MAX_HEADER_BYTES = 32 * 1024


class RequestCheckMiddleware:
    """Rejects long paths, queries and headers, queries with many fields, and control characters in paths.

    uvicorn's parser (httptools) has no limits, and Python's parsers of queries and cookies are slow with many fields.
    Without the check of paths, routes would match a path with a trailing newline.

    In queries, the middleware percent-encodes raw UTF-8, because Starlette would decode it as Latin-1, and bare percent
    signs, because Python decodes them slowly.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        refusal = _check_request(scope["path"], scope["query_string"], scope["headers"])
        if refusal is None:
            if scope["query_string"]:
                scope["query_string"] = _percent_encode(scope["query_string"])
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(POLICY_VIOLATION)(scope, receive, send)
        else:
            await refusal(scope, receive, send)


def _check_request(path: str, query: bytes, headers: Iterable[tuple[bytes, bytes]]) -> PlainTextResponse | None:
    """Return the error response, or None for a valid request."""
    if len(path) + len(query) > MAX_TARGET_BYTES:
        return PlainTextResponse(
            f"The path and the query must have at most {MAX_TARGET_BYTES} bytes.", HTTPStatus.REQUEST_URI_TOO_LONG
        )
    if query.count(b"&") >= MAX_FIELDS:
        return PlainTextResponse(f"The query must have at most {MAX_FIELDS} fields.", HTTPStatus.BAD_REQUEST)
    if CONTROL_CHARACTER.search(path):
        return PlainTextResponse("The path must not contain control characters.", HTTPStatus.BAD_REQUEST)
    if sum(map(len, chain.from_iterable(headers))) > MAX_HEADER_BYTES:
        return PlainTextResponse(
            f"The headers must have at most {MAX_HEADER_BYTES} bytes.", HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        )
    return None


def _percent_encode(query: bytes) -> bytes:
    encoded = query if query.isascii() else quote_from_bytes(query, ASCII).encode()
    # Encode bare percent signs, because Python's decoder is slow: it raises and catches an exception for each of them.
    return BARE_PERCENT.sub(b"%25", encoded) if b"%" in encoded else encoded
