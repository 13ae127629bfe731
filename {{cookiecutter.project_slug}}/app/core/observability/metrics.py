import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.core.observability.metrics_files import FOLDER, list_files, locked

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
