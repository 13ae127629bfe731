"""Draining of workers, at a stop and when they are replaced: every request is answered, no connection is reset."""

import signal
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from tests.support.servers import WORKER_CLASSES, Server, is_running, run_server, wait_for

pytestmark = pytest.mark.processes

LIVE = "/health/live"
# Longer than the pauses of the client, so that the service does not close an idle connection.
PATIENT_SECONDS = "60"
# Enough requests to notice a loss: without draining, one in 40 requests failed on a kept-alive connection, and one in
# 70 on a new connection.
REQUESTS = 150
MAX_REQUESTS = 50
left = pytest.mark.parametrize(("command", "worker_class"), WORKER_CLASSES.values(), ids=WORKER_CLASSES)
# Every way to start workers except gunicorn's own worker class, which closes kept-alive connections at its limit of
# requests.
DRAINED = {name: way for name, way in WORKER_CLASSES.items() if "asgi" not in way}
drained = pytest.mark.parametrize(("command", "worker_class"), DRAINED.values(), ids=DRAINED)


def connect(server: Server) -> HTTPConnection:
    return HTTPConnection(urlsplit(server.base_url).netloc, timeout=120)


def ask(connection: HTTPConnection, path: str, method: str = "GET") -> tuple[int, str | None]:
    """Send a request; return the status and the Connection header of the response."""
    connection.request(method, path)
    response = connection.getresponse()
    response.read()
    return response.status, response.headers["connection"]


@drained
def test_replaced_workers_reset_no_connection(empty_url: str, command: Sequence[str], worker_class: str) -> None:
    with (
        run_server(
            empty_url,
            command,
            workers=2,
            WORKER_CLASS=worker_class,
            MAX_REQUESTS=str(MAX_REQUESTS),
            KEEPALIVE_SECONDS=PATIENT_SECONDS,
        ) as server,
        ThreadPoolExecutor() as threads,
    ):
        loads = [threads.submit(load, server, is_kept=number % 2 == 0) for number in range(4)]

        outcomes = sum((submitted.result() for submitted in loads), Counter[object]())
        assert outcomes == {200: 2 * REQUESTS, 405: 2 * REQUESTS}
        # At least one of the two workers was replaced. Workers check their limit only ten times a second, and may serve
        # many requests between two checks.
        assert server.count_started() > 2


def load(server: Server, *, is_kept: bool) -> Counter[object]:
    """Send requests and count the outcomes; on a kept-alive connection, use a method that clients do not retry."""
    outcomes: Counter[object] = Counter()
    with closing(connect(server)) as connection:
        for _ in range(REQUESTS):
            try:
                outcomes[ask(connection, LIVE, "POST" if is_kept else "GET")[0]] += 1
            except OSError as error:
                outcomes[repr(error)] += 1
                connection.close()
            if not is_kept:
                connection.close()
    return outcomes


@left
def test_a_request_on_an_open_connection_is_answered_after_the_stop_began(
    empty_url: str, command: Sequence[str], worker_class: str
) -> None:
    with (
        run_server(empty_url, command, WORKER_CLASS=worker_class, KEEPALIVE_SECONDS=PATIENT_SECONDS) as server,
        closing(connect(server)) as unused,
        closing(connect(server)) as used,
    ):
        unused.connect()
        # The worker accepts connections in order: after this response it has also accepted `unused`.
        assert ask(used, LIVE)[0] == 200
        server.send(signal.SIGTERM)
        wait_for(lambda: refuses_connections(server), "the closed socket")

        assert ask(used, LIVE) == (200, "close")
        assert ask(unused, LIVE) == (200, "close")
        assert server.wait() == 0


@drained
def test_application_shuts_down_completely_despite_idle_connection(
    empty_url: str, command: Sequence[str], worker_class: str
) -> None:
    with (
        run_server(
            empty_url,
            command,
            WORKER_CLASS=worker_class,
            KEEPALIVE_SECONDS=PATIENT_SECONDS,
            GRACEFUL_TIMEOUT_SECONDS="6",
        ) as server,
        closing(connect(server)) as idle,
    ):
        assert ask(idle, LIVE)[0] == 200
        server.send(signal.SIGTERM)

        assert server.wait() == 0
        assert "Application shutdown complete." in server.log


def refuses_connections(server: Server) -> bool:
    try:
        with closing(connect(server)) as connection:
            connection.connect()
    except OSError:
        return True
    return False


@left
def test_idle_connection_does_not_delay_stop(empty_url: str, command: Sequence[str], worker_class: str) -> None:
    with (
        run_server(
            empty_url, command, WORKER_CLASS=worker_class, KEEPALIVE_SECONDS="1", GRACEFUL_TIMEOUT_SECONDS="60"
        ) as server,
        closing(connect(server)) as idle,
    ):
        assert ask(idle, LIVE)[0] == 200
        workers = server.workers
        server.send(signal.SIGTERM)

        wait_for(lambda: not any(map(is_running, workers)), "the end of the workers", timeout=30)
        assert server.wait() == 0
