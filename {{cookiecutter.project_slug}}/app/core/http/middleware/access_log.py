import time

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.http.middleware.status import StatusRecorder
from app.core.http.request import PROBE_PATHS

access_logger = structlog.get_logger("app.access")


class AccessLogMiddleware:
    """Log one line per request, without the query string, which may hold secrets."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Skip probes: their lines would outnumber all others.
        if scope["type"] != "http" or PROBE_PATHS.match(scope["path"]):
            await self.app(scope, receive, send)
            return
        recorder = StatusRecorder(send)
        started = time.perf_counter()
        try:
            await self.app(scope, receive, recorder)
        finally:
            access_logger.info(
                "request",
                method=scope["method"],
                # Percent-encoded as received: a newline cannot forge a log line.
                path=scope.get("raw_path", scope["path"].encode()).decode("latin-1"),
                status=recorder.status or 500,
                duration_ms=round((time.perf_counter() - started) * 1000, 1),
                client=scope["client"][0] if scope.get("client") else None,
            )
