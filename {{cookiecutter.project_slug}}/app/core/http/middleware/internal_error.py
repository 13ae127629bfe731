from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.http.middleware.status import StatusRecorder
from app.core.http.problems import logger, problem_response


class InternalErrorMiddleware:
    """Logs unhandled errors with the request id, and responds with a 500 that reveals no internals."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        recorder = StatusRecorder(send)
        try:
            await self.app(scope, receive, recorder)
        except Exception:
            logger.exception("unhandled error", method=scope["method"], path=scope["path"])
            if recorder.status is not None:
                raise
            await problem_response(
                scope, 500, "Internal error. Quote the request ID when you report it.", code="internal-error"
            )(scope, receive, send)
