import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.core.observability.metrics_files import FOLDER, list_files, locked

REQUESTS = Counter("http_requests_total", "Completed requests.", ["method", "route", "status"])
DURATION = Histogram("http_request_duration_seconds", "Time until the response was sent.", ["method", "route"])
IN_FLIGHT = Gauge("http_requests_in_flight", "Requests in progress.", multiprocess_mode="livesum")
POOL_SIZE = Gauge("database_pool_size", "Maximum number of connections.", multiprocess_mode="livesum")
POOL_IN_USE = Gauge("database_pool_in_use", "Connections in use.", multiprocess_mode="livesum")
POOL_WAITING = Gauge("database_pool_waiting", "Tasks waiting for a connection.", multiprocess_mode="livesum")
EMAILS = Counter("emails_total", "Attempts to send an e-mail.", ["outcome"])
EMAILS_PENDING_SECONDS = Gauge(
    "emails_pending_seconds", "Age of the oldest unsent e-mail.", multiprocess_mode="livemostrecent"
)
SIGN_INS = Counter("sign_ins_total", "Sign-in attempts.", ["outcome"])


class WorkersCollector(Collector):
    """Sums the metrics of all workers from the files in their shared folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        with locked(self._folder):
            files = list_files(self._folder)
            metrics: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]  # no annotation in the library
        return metrics


def render_metrics() -> bytes:
    """Render the metrics in Prometheus' text format, summed over all workers that share a folder."""
    folder = os.environ.get(FOLDER)
    if folder is None:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    registry.register(WorkersCollector(Path(folder)))
    return generate_latest(registry)
