import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import RETRY_AFTER
from app.core.http.problems import problem_response
from app.core.http.request import PROBE_PATHS

# Requests wait briefly before they are refused. A refusal takes the service almost as much time as a normal response,
# and clients that get a 503 at once also retry at once.
MAX_QUEUE_SECONDS = 0.5


class ConcurrencyLimitMiddleware:
    """Load shedding: process `limit` requests at a time, queue the others briefly, then refuse them with 503.

    Without a limit, response times under overload would grow until clients give up before they get a response.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self._slots = asyncio.Semaphore(limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Probes bypass the limit: a refused probe would make a busy process look dead.
        if scope["type"] != "http" or PROBE_PATHS.match(scope["path"]):
            await self.app(scope, receive, send)
        elif await self._enter():
            try:
                await self.app(scope, receive, send)
            finally:
                self._slots.release()
        else:
            refusal = problem_response(
                scope, 503, "The service is busy. Try again in a moment.", code="busy", headers=RETRY_AFTER
            )
            await refusal(scope, receive, send)

    async def _enter(self) -> bool:
        if not self._slots.locked():
            return await self._slots.acquire()
        try:
            async with asyncio.timeout(MAX_QUEUE_SECONDS):
                return await self._slots.acquire()
        except TimeoutError:
            return False
