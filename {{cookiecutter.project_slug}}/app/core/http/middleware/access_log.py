import time

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.http.middleware.status import StatusRecorder
from app.core.http.request import PROBE_PATHS

access_logger = structlog.get_logger("app.access")


class AccessLogMiddleware:
    """Write one line a request, without its query string."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A line for each probe would bury the rest.
        if scope["type"] != "http" or PROBE_PATHS.match(scope["path"]):
            await self.app(scope, receive, send)
            return
        answer = StatusRecorder(send)
        started = time.perf_counter()
        try:
            await self.app(scope, receive, answer)
        finally:
            access_logger.info(
                "request",
                method=scope["method"],
                # As it came, percent-encoded: no newline can forge a line.
                path=scope.get("raw_path", scope["path"].encode()).decode("latin-1"),
                status=answer.status or 500,
                duration_ms=round((time.perf_counter() - started) * 1000, 1),
                client=scope["client"][0] if scope.get("client") else None,
            )
