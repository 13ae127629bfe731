import json
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.http.request import PROBE_PATHS
from app.web.pages import Web, page_headers

PROBLEM = "application/problem+json"


class ErrorPageMiddleware:
    """Renders problem documents as pages for browsers, except the problem documents of the API."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _wants_page(scope):
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        body = b""

        async def rewrite(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start" and _is_problem(message):
                start = message
            elif start is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body"):
                    await _error_page(scope, start, json.loads(body))(scope, receive, send)

        await self.app(scope, receive, rewrite)


def _wants_page(scope: Scope) -> bool:
    state = scope.get("state", {})
    if "web" not in state or PROBE_PATHS.match(scope["path"]):
        return False
    is_api = scope["path"].startswith(f"{state['settings'].api_prefix}/")
    return not is_api and "text/html" in Headers(scope=scope).get("accept", "")


def _is_problem(message: Message) -> bool:
    return bool(message["status"] >= 400 and Headers(raw=message["headers"]).get("content-type") == PROBLEM)


def _error_page(scope: Scope, start: Message, problem: dict[str, Any]) -> HTMLResponse:
    web: Web = scope["state"]["web"]
    received = Headers(raw=start["headers"])
    page = web.render("templates/error.html", problem=problem, retry_after=received.get("retry-after"))
    response = HTMLResponse(page, start["status"], page_headers(scope["state"]["content_security_policy"]))
    headers = MutableHeaders(raw=response.raw_headers)
    for name, value in received.items():
        if not name.startswith("content-"):
            headers.setdefault(name, value)
    return response
