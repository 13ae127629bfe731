import os
import time
from collections.abc import Iterable
from pathlib import Path

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.metrics_files import FOLDER, list_files, locked
from app.core.requests import AnswerWatch

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
UNMATCHED = "unmatched"

REQUESTS = Counter("http_requests_total", "Requests answered.", ["method", "route", "status"])
DURATION = Histogram("http_request_duration_seconds", "Time to the end of the answer.", ["method", "route"])
IN_FLIGHT = Gauge("http_requests_in_flight", "Requests being answered.", multiprocess_mode="livesum")
POOL_SIZE = Gauge("database_pool_size", "Connections that may be open.", multiprocess_mode="livesum")
POOL_IN_USE = Gauge("database_pool_in_use", "Connections in use.", multiprocess_mode="livesum")
POOL_WAITING = Gauge("database_pool_waiting", "Tasks that wait for a connection.", multiprocess_mode="livesum")
EMAILS = Counter("emails_total", "Attempts to send a message.", ["outcome"])
EMAILS_PENDING_SECONDS = Gauge(
    "emails_pending_seconds", "Age of the oldest message that is not sent.", multiprocess_mode="livemostrecent"
)
SIGN_INS = Counter("sign_ins_total", "Attempts to sign in.", ["outcome"])


class WorkersCollector(Collector):
    """Add up what the workers have written into their shared folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        with locked(self._folder):
            files = list_files(self._folder)
            metrics: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]  # no annotation in the library
        return metrics


def render_metrics() -> bytes:
    """Render Prometheus' text format, added up over all workers where they share a folder."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    registry.register(WorkersCollector(Path(folder)))
    return generate_latest(registry)


class MetricsMiddleware:
    """Count and time requests by route template, so that no caller can make the label set grow."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._templates: dict[object, str] | None = None
        # To look them up takes longer than to count. No caller can make it grow: methods and routes are ours.
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = AnswerWatch(send)
        started = time.perf_counter()
        IN_FLIGHT.inc()
        try:
            await self.app(scope, receive, answer)
        finally:
            IN_FLIGHT.dec()
            method = scope["method"] if scope["method"] in METHODS else "other"
            requests, duration = self._children_of(method, self._template_of(scope), answer.status or 500)
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
    # scope["route"] knows its path without the prefixes of the routers around it.
    routes = iter_route_contexts(app.routes)
    return {route.endpoint: route.path_format or UNMATCHED for route in routes if route.endpoint is not None}
