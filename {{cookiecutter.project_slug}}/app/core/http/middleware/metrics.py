import time

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.http.middleware.status import StatusRecorder
from app.core.observability.metrics import DURATION, IN_FLIGHT, REQUESTS

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
UNMATCHED = "unmatched"


class MetricsMiddleware:
    """Counts and times requests by route template; paths as labels would let clients create any number of series."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._templates: dict[object, str] | None = None
        # Cache the result of `labels`, which takes longer than counting. The cache stays small, because its keys are
        # methods, routes and statuses.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        recorder = StatusRecorder(send)
        started = time.perf_counter()
        IN_FLIGHT.inc()
        try:
            await self.app(scope, receive, recorder)
        finally:
            IN_FLIGHT.dec()
            method = scope["method"] if scope["method"] in METHODS else "other"
            requests, duration = self._children_of(method, self._template_of(scope), recorder.status or 500)
            requests.inc()
            duration.observe(time.perf_counter() - started)

    def _children_of(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        key = (method, route, status)
        if key not in self._children:
            self._children[key] = (REQUESTS.labels(method, route, str(status)), DURATION.labels(method, route))
        return self._children[key]

    def _template_of(self, scope: Scope) -> str:
        if self._templates is None:
            self._templates = _route_templates(scope["app"])
        return self._templates.get(scope.get("endpoint"), UNMATCHED)


def _route_templates(app: FastAPI) -> dict[object, str]:
    # The path in scope["route"] lacks the prefixes of the outer routers.
    routes = iter_route_contexts(app.routes)
    return {route.endpoint: route.path_format or UNMATCHED for route in routes if route.endpoint is not None}
