from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.exceptions import RETRY_AFTER, problem_response
from app.core.requests import PROBE_PATHS


class OverloadMiddleware:
    """Refuse at once what could only be answered late: so many requests at a time, and 503 for those beyond.

    Without a bound all would wait longer and longer, until every client has given up before its answer is ready.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self._limit = limit
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A probe that is refused would take a busy process for a dead one.
        if scope["type"] != "http" or PROBE_PATHS.match(scope["path"]):
            await self.app(scope, receive, send)
        elif self._running >= self._limit:
            refusal = problem_response(scope, 503, "The service is busy.", headers=RETRY_AFTER)
            await refusal(scope, receive, send)
        else:
            self._running += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self._running -= 1
