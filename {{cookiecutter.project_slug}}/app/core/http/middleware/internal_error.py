from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.http.middleware.status import StatusRecorder
from app.core.http.problems import logger, problem_response


class InternalErrorMiddleware:
    """Log what nothing else handled, with the request's id, and answer 500 without a word about the inside."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = StatusRecorder(send)
        try:
            await self.app(scope, receive, answer)
        except Exception:
            logger.exception("unhandled error", method=scope["method"], path=scope["path"])
            if answer.status is not None:
                raise
            await problem_response(
                scope, 500, "Internal error. Quote the request ID when you report it.", code="internal-error"
            )(scope, receive, send)
