"""The worker monitor: its error messages, its notifications to systemd, and the setup of its workers."""

import errno
import importlib
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from app.core.config.load import EXIT_CANNOT_START
from app.core.process.monitor import WorkerMonitor
from app.core.process.worker import make_config
from tests.support.databases import make_settings
from tests.support.servers import MANAGERS, PATIENCE_SECONDS, make_environment, run_server, start_process, wait_for
from tests.support.sockets import HAND_OVER, listen_tcp

pytestmark = pytest.mark.processes

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR2)
kept = pytest.mark.parametrize("command", [command for name, command in MANAGERS.items() if name != "gunicorn"])


def explain(command: Sequence[str], url: str, sockets: Sequence[socket.socket] = (), **changes: str) -> str:
    """Start the service in a way that must fail, and return its log."""
    fds = [handed.fileno() for handed in sockets]
    if fds:
        command = [sys.executable, "-c", HAND_OVER, ",".join(map(str, fds)), *command]
    with start_process(command, make_environment(url, **changes), pass_fds=fds) as server:
        assert server.wait() == EXIT_CANNOT_START
        return server.log


@kept
def test_unknown_worker_class_is_refused(empty_url: str, command: Sequence[str]) -> None:
    assert "WORKER_CLASS: must be one of " in explain(command, empty_url, WORKER_CLASS="asgi")


@kept
def test_more_than_one_socket_from_systemd_is_refused(empty_url: str, command: Sequence[str]) -> None:
    with listen_tcp() as one, listen_tcp() as other:
        log = explain(command, empty_url, (one, other))

    assert log == "systemd passed several sockets, but the service accepts only one: keep one ListenStream.\n"


@kept
def test_port_in_use_is_reported_at_start(empty_url: str, command: Sequence[str]) -> None:
    with listen_tcp() as taken:
        log = explain(command, empty_url, PORT=str(taken.getsockname()[1]))

    assert log.startswith("The service cannot listen: ")
    assert os.strerror(errno.EADDRINUSE) in log


@kept
def test_systemd_is_notified_when_service_is_ready(empty_url: str, socket_folder: Path, command: Sequence[str]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(socket_folder / "notify"))
        notified.settimeout(PATIENCE_SECONDS)
        with run_server(empty_url, command, NOTIFY_SOCKET=str(socket_folder / "notify")):
            assert notified.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("worker_class", "loop", "protocol"),
    [("uvicorn_worker.UvicornWorker", "auto", "auto"), ("uvicorn_worker.UvicornH11Worker", "asyncio", "h11")],
)
def test_worker_class_selects_event_loop_and_http_parser(
    empty_url: str, worker_class: str, loop: str, protocol: str
) -> None:
    with listen_tcp() as listening:
        config = make_config(make_settings(empty_url, worker_class=worker_class), listening)

    assert (config.loop, config.http) == (loop, protocol)


def test_workers_are_replaced_after_max_requests_with_jitter(empty_url: str) -> None:
    with listen_tcp() as listening:
        config = make_config(make_settings(empty_url, max_requests=1000), listening)

    assert (config.limit_max_requests, config.limit_max_requests_jitter) == (1000, 100)


@kept
def test_a_reload_replaces_one_worker_after_the_other(empty_url: str, command: Sequence[str]) -> None:
    started, stopped = "Application startup complete.", "Shutting down"

    with run_server(empty_url, command, workers=2, UPDATE_DB="1") as server:
        server.send(signal.SIGHUP)
        wait_for(lambda: server.count_started() == 4, "the new workers")
        told = [event["event"] for event in server.events if event["event"] in {started, stopped}]

    assert told == [started, started, stopped, started, stopped, started]


@kept
def test_no_worker_is_ready_after_stop_signal(empty_url: str, command: Sequence[str]) -> None:
    # Longer than the test: the service must not close the idle connection.
    with run_server(empty_url, command, UPDATE_DB="1", KEEPALIVE_SECONDS="60") as server:
        with server.open_client() as client:
            assert client.get("/health/ready").status_code == 200
            server.send(signal.SIGTERM)
            server.wait_for_event("Handling signal: term")

            assert client.get("/health/ready").status_code == 503
        assert server.wait() == 0


@pytest.fixture
def signal_handlers() -> Iterator[None]:
    """Restore the signal handlers after the test."""
    before = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.skipif("supervisor" not in MANAGERS, reason="the workers are not supervisor's")
@pytest.mark.usefixtures("signal_handlers")
def test_supervisor_starts_no_worker_after_a_stop_signal(empty_url: str, tmp_path: Path) -> None:
    supervisor = importlib.import_module("deploy.supervisor.run_supervisor")
    monitor = WorkerMonitor(make_settings(empty_url, port=0), tmp_path, 1)
    options = supervisor.Options(monitor)
    options.setsignals()
    running = options.mood

    signal.raise_signal(signal.SIGTERM)

    # The state must change at once: at the end of the current iteration, supervisor would already have replaced a
    # worker that has ended.
    assert options.mood < supervisor.SupervisorStates.RESTARTING < running
    assert monitor.listening.fileno() == -1
    # A worker that is just being started gets a socket on which it cannot listen.
    with (
        supervisor.InheritedSocket(monitor).create_and_bind() as unbound,
        pytest.raises(OSError, match="Invalid argument"),
    ):
        unbound.listen()
