import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import RETRY_AFTER
from app.core.http.problems import problem_response
from app.core.http.request import PROBE_PATHS

# A refusal costs nearly as much as a cheap answer: one that came at once would be asked for again at once.
PATIENCE_SECONDS = 0.5


class ConcurrencyLimitMiddleware:
    """Answer so many requests at a time; those beyond wait a moment for their turn, and are refused with 503.

    Without a bound all would wait longer and longer, until every client has given up before its answer is ready.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self._places = asyncio.Semaphore(limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A probe that is refused would take a busy process for a dead one.
        if scope["type"] != "http" or PROBE_PATHS.match(scope["path"]):
            await self.app(scope, receive, send)
        elif await self._enter():
            try:
                await self.app(scope, receive, send)
            finally:
                self._places.release()
        else:
            refusal = problem_response(
                scope, 503, "The service is busy. Try again in a moment.", code="busy", headers=RETRY_AFTER
            )
            await refusal(scope, receive, send)

    async def _enter(self) -> bool:
        if not self._places.locked():
            return await self._places.acquire()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self._places.acquire()
        except TimeoutError:
            return False
