"""The service in real processes, with each process manager: signals, crashes, logs, metrics, reload."""

import os
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import httpx2
import pytest

from app.core.project import ROOT
from tests.support.databases import execute, migrate
from tests.support.servers import (
    MANAGERS,
    SERVE,
    SERVE_TWO,
    START,
    UVICORN,
    WORKER_CLASSES,
    Server,
    blocked_writes,
    is_running,
    make_environment,
    read_metric,
    run_server,
    sign_up,
    start_process,
    wait_for,
)

pytestmark = pytest.mark.processes

# A route that reads from the database, and a route that writes to it.
SESSIONS = "/api/v1/auth/sessions"
ME = "/api/v1/users/me"
# Each way to start the service with workers.
managed = pytest.mark.parametrize("command", MANAGERS.values(), ids=MANAGERS)
served = pytest.mark.parametrize("command", [*MANAGERS.values(), SERVE], ids=[*MANAGERS, "serve"])
started = pytest.mark.parametrize("command", [*MANAGERS.values(), SERVE, UVICORN], ids=[*MANAGERS, "serve", "uvicorn"])
LOADS = 4
MAX_REQUESTS = 20_000
# Longer than a worker takes to start, even if the machine pauses.
HANG_SECONDS = 20
POOL_SIZE = 3
PROJECT_FILES = ("app", "migrations", "alembic.ini", "pyproject.toml", "start-reload.sh")


@pytest.fixture
def url(empty_url: str) -> str:
    """A separate database with the schema."""
    migrate(empty_url)
    return empty_url


@started
def test_every_log_line_is_json_and_no_line_is_an_error(url: str, command: Sequence[str]) -> None:
    with run_server(url, command, workers=2 if command in MANAGERS.values() else 1) as server:
        assert server.get("/health/ready").status_code == 200
        assert server.get(f"{SESSIONS}?secret=hunter2").status_code == 401
        send_garbage(server)
        server.stop()

        assert all({"event", "level", "logger", "timestamp"} <= event.keys() for event in server.events)
        assert {event["level"] for event in server.events} <= {"info", "warning"}
        assert [event["path"] for event in server.events if event["event"] == "request"] == [SESSIONS]
        assert "hunter2" not in server.log


def send_garbage(server: Server) -> None:
    with open_connection(server) as connection:
        connection.sendall(b"GARBAGE\r\n\r\n")
        assert b"400" in connection.recv(1000)


def open_connection(server: Server) -> socket.socket:
    address = urlsplit(server.base_url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


@pytest.mark.parametrize(("command", "worker_class"), WORKER_CLASSES.values(), ids=WORKER_CLASSES)
def test_stopping_service_answers_open_requests_and_is_not_ready(
    url: str, command: Sequence[str], worker_class: str
) -> None:
    with run_with_one_connection(url, command, worker_class) as server, ThreadPoolExecutor() as threads:
        client = server.open_client()
        user = sign_up(client)
        with blocked_writes(url):
            # Wait until nothing uses the connection: from now on, only the write does.
            wait_for(lambda: read_metric(server, "database_pool_in_use") == 0, "the end of all else")
            writing = threads.submit(client.patch, ME, json={"name": "Slow"}, headers=user)
            # The number includes the request that reads the metric.
            wait_for(lambda: read_metric(server, "http_requests_in_flight") == 2, "the write")
            wait_for(lambda: read_metric(server, "database_pool_in_use") == 1, "its transaction")
            asking = threads.submit(server.get, "/health/ready")
            wait_for(lambda: read_metric(server, "http_requests_in_flight") == 3, "the readiness check")
            wait_for(lambda: read_metric(server, "database_pool_waiting") >= 1, "its place in the line")
            server.send(signal.SIGTERM)
            server.wait_for_event("Handling signal: term")
            wait_for(lambda: refuses_connections(server), "the closed socket")

        assert writing.result().status_code == 200
        assert asking.result().status_code == 503
        assert asking.result().json()["detail"] == "The service is stopping."
        assert server.wait() == 0
        assert execute(url, "SELECT name FROM users") == [("Slow",)]
        client.close()


@contextmanager
def run_with_one_connection(url: str, command: Sequence[str], worker_class: str) -> Iterator[Server]:
    """Run the service with one database connection: a second request waits for the connection when the stop begins."""
    with run_server(
        url,
        command,
        WORKER_CLASS=worker_class,
        DATABASE_POOL_SIZE="1",
    ) as server:
        # Only gunicorn logs its worker class.
        assert command != MANAGERS.get("gunicorn") or f"Using worker: {worker_class}" in server.log
        yield server


def refuses_connections(server: Server) -> bool:
    try:
        open_connection(server).close()
    except OSError:
        return True
    return False


@served
def test_stop_waits_for_slow_request_body(url: str, command: Sequence[str]) -> None:
    with run_server(url, command) as server, server.open_client() as client, open_connection(server) as slow:
        user = sign_up(client)
        head = f"PATCH {ME} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {user['Authorization']}\r\n"
        slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 15\r\n\r\n".encode() + b'{"name"')
        wait_for(lambda: read_metric(server, "http_requests_in_flight") == 2, "the request")
        server.send(signal.SIGTERM)
        wait_for(lambda: refuses_connections(server), "the closed socket")

        slow.sendall(b': "Tea"}')

        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        assert server.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_process_ends_with_success_when_told_to_stop(url: str, number: signal.Signals) -> None:
    # `serve` must start one process, although uvicorn would read WEB_CONCURRENCY by default.
    with run_server(url, SERVE, WEB_CONCURRENCY="3") as server:
        server.send(number)

        assert server.wait() == 0
        assert server.log.count("Started server process") == 1


@managed
def test_environment_sets_number_of_workers(url: str, command: Sequence[str]) -> None:
    with run_server(url, command, workers=3) as server:
        assert len(server.workers) == 3
        assert server.get("/health").status_code == 200


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc to read an environment from")
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1048576"}),
        ({"MALLOC_ARENA_MAX": "8"}, {"MALLOC_ARENA_MAX": "8", "MALLOC_MMAP_THRESHOLD_": "1048576"}),
    ],
    ids=["start.sh", "the operator"],
)
def test_start_script_configures_memory_allocator_unless_operator_does(
    url: str, changes: dict[str, str], expected: dict[str, str]
) -> None:
    with start_process(START, make_environment(url, **changes)) as server:
        server.wait_until_started()
        [worker] = server.workers
        found = Path(f"/proc/{worker}/environ").read_text().split("\0")

        assert {f"{name}={value}" for name, value in expected.items()} <= set(found)


@managed
def test_a_killed_worker_is_replaced_and_its_counts_are_kept(url: str, command: Sequence[str]) -> None:
    with run_server(url, command, workers=2, DATABASE_POOL_SIZE=str(POOL_SIZE)) as server:
        before = server.workers
        folder = find_metrics(server)
        answers: list[int] = []
        counts: list[float] = []
        files = [folder / f"counter_{pid}.db" for pid in before]
        wait_for(lambda: ask(server, answers, counts) and all(map(has_counted, files)), "both to answer")
        wait_for(lambda: count_requests(server) == len(answers), "the counts of both")
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: ask(server, answers, counts) and server.count_started() == 3, "the new worker")

        wait_for(lambda: count_requests(server) == len(answers), "the counts of all three")
        # Only the request that reads the metric is in flight.
        wait_for(lambda: read_metric(server, "http_requests_in_flight") == 1, "the end of all other requests")
        assert counts == sorted(counts)
        assert set(answers) == {401}
        wait_for(lambda: read_metric(server, "database_pool_size") == 2 * POOL_SIZE, "the size of both pools")
        assert len(server.workers) == 2
        assert killed not in server.workers
        assert server.stop() == 0
        assert not folder.exists()


@managed
def test_a_worker_that_hangs_is_replaced(url: str, command: Sequence[str]) -> None:
    with run_server(url, command, workers=2, WORKER_TIMEOUT_SECONDS=str(HANG_SECONDS)) as server:
        hung = min(server.workers)
        os.kill(hung, signal.SIGSTOP)

        wait_for(lambda: server.count_started() == 3, "the new worker")
        assert hung not in server.workers
        assert len(server.workers) == 2
        assert server.get("/health").status_code == 200
        assert server.stop() == 0


@managed
def test_workers_end_when_their_manager_is_killed(url: str, command: Sequence[str]) -> None:
    with run_server(url, command, workers=2) as server:
        workers = server.workers
        folder = find_metrics(server)

        server.process.kill()

        wait_for(lambda: not any(map(is_running, workers)), "the end of the workers")
        shutil.rmtree(folder)


def has_counted(file: Path) -> bool:
    return SESSIONS.encode() in file.read_bytes()


@managed
def test_counts_of_replaced_workers_are_kept_and_their_files_removed(url: str, command: Sequence[str]) -> None:
    with run_server(url, command, workers=2, MAX_REQUESTS="10") as server:
        folder = find_metrics(server)
        answers: list[int] = []
        counts: list[float] = []
        wait_for(lambda: ask(server, answers, counts) and server.count_started() >= 8, "six new workers")

        wait_for(lambda: count_requests(server) == len(answers), "the counts of all")
        assert counts == sorted(counts)
        # At most four files for each of four workers, live or just ended, and two files of totals.
        wait_for(lambda: read_metric(server, "http_requests_in_flight") == 1, "the end of all other requests")
        assert len(list(folder.glob("*.db"))) <= 4 * 4 + 2


def ask(server: Server, answers: list[int], counts: list[float]) -> bool:
    """Send a request over a new connection, which any worker may accept; append its status and the request count."""
    answers.append(server.get(SESSIONS).status_code)
    counts.append(count_requests(server))
    return True


def count_requests(server: Server) -> float:
    return read_metric(server, 'http_requests_total{method="GET",route="' + SESSIONS)


def find_metrics(server: Server) -> Path:
    """Return the metrics folder of the workers: in a tmpfs or, if there is none, on the disk."""
    for memory in (Path("/dev/shm"), Path(tempfile.gettempdir())):  # noqa: S108  # only looked at
        for folder in memory.glob("metrics-*"):
            # Folders of other users are not accessible.
            if os.access(folder, os.X_OK) and all(
                (folder / f"gauge_livesum_{worker}.db").exists() for worker in server.workers
            ):
                return folder
    pytest.fail("there are no counts")


@managed
def test_a_reload_under_load_fails_no_request(url: str, command: Sequence[str]) -> None:
    ended = Event()
    with (
        # Longer than the pauses of the client, so that the service does not close an idle connection.
        run_server(url, command, workers=2, KEEPALIVE_SECONDS="60") as server,
        ThreadPoolExecutor() as threads,
        ExitStack() as stack,
    ):
        # Also ends the load if the test fails.
        stack.callback(ended.set)
        before = server.workers
        with server.open_client() as client:
            user = sign_up(client)
        loads = [threads.submit(put_under_load, server, user, ended, keep_alive=number > 1) for number in range(LOADS)]
        wait_for(lambda: count_requests(server) > 100, "the load")
        server.send(signal.SIGHUP)
        wait_for(lambda: server.count_started() == 4 and not server.workers & before, "the new workers")
        answered = count_requests(server)
        wait_for(lambda: count_requests(server) > answered + 100, "their work")
        ended.set()

        outcomes = [outcome for load in loads for outcome in load.result()]
        assert len(server.workers) == 2
        assert set(outcomes) == {200}


def put_under_load(server: Server, user: dict[str, str], ended: Event, *, keep_alive: bool) -> list[int | None]:
    """Return the status of each request, or None if the connection was closed without a response."""
    outcomes: list[int | None] = []
    address = urlsplit(server.base_url)
    connection = HTTPConnection(address.netloc, timeout=60)
    while not ended.is_set() and len(outcomes) < MAX_REQUESTS:
        try:
            connection.request("GET", SESSIONS, headers=user)
            response = connection.getresponse()
            response.read()
            outcomes.append(response.status)
        except (RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            outcomes.append(None)
            connection.close()
        if not keep_alive:
            connection.close()
    connection.close()
    return outcomes


def test_uvicorn_without_gunicorn_replaces_killed_and_reloaded_workers(empty_url: str) -> None:
    with run_server(empty_url, SERVE_TWO, workers=2, UPDATE_DB="1", DATABASE_POOL_SIZE=str(POOL_SIZE)) as server:
        before = server.workers
        folder = find_metrics(server)
        answers: list[int] = []
        wait_for(lambda: ask(server, answers, []) and count_requests(server) == len(answers), "the counts of both")
        os.kill(min(before), signal.SIGKILL)
        wait_for(lambda: server.count_started() == 3, "the new worker")
        server.send(signal.SIGHUP)
        wait_for(lambda: server.count_started() == 5 and not server.workers & before, "new workers")

        assert server.get(SESSIONS).status_code == 401
        wait_for(lambda: count_requests(server) == len(answers) + 1, "the counts of all")
        wait_for(lambda: read_metric(server, "database_pool_size") == 2 * POOL_SIZE, "the size of both pools")
        assert server.stop() == 0
        assert {event["level"] for event in server.events} == {"info"}
        assert not folder.exists()


@started
def test_invalid_configuration_ends_start_with_readable_messages(empty_url: str, command: Sequence[str]) -> None:
    wrong = {"ENVIRONMENT": "production", "SECRET_KEY": "hunter2", "RESET_DB": "1", "PORT": "hunter2"}
    with start_process(command, make_environment(empty_url, **wrong)) as server:
        assert server.wait() == 3

        lines = server.log.splitlines()
        assert lines[0] == "The configuration is invalid:"
        assert [line.partition(":")[0] for line in lines[1:]] == [
            "  PORT",
            "  ALLOWED_HOSTS",
            "  SECRET_KEY",
            "  RESET_DB",
        ]
        assert "hunter2" not in server.log


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project whose files the test may change."""
    for name in PROJECT_FILES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_development_server_restarts_when_the_code_changes(url: str, project: Path) -> None:
    with run_server(url, ["./start-reload.sh"], cwd=project) as server:
        assert server.get("/health").json()["status"] == "ok"
        schemas = project / "app/health/schemas.py"
        schemas.write_text(schemas.read_text().replace('"ok"', '"changed"'))

        wait_for(lambda: is_reloading(server, schemas), "the watcher")
        wait_for(lambda: server.count_started() >= 2, "the restart")
        wait_for(lambda: read_status(server) == "changed", "the new code")
        assert server.stop() == 0
        assert not any(is_running(pid) for pid in started_processes(server))


def is_reloading(server: Server, changed: Path) -> bool:
    # Change the file again at each call: a watcher that starts after a change does not notice that change.
    changed.touch()
    return "Reloading..." in server.log


def read_status(server: Server) -> str | None:
    """Return the status of /health, or None if the service does not answer.

    The service restarts after each change that `is_reloading` makes, so perhaps several times.
    """
    try:
        return str(server.get("/health").json()["status"])
    except httpx2.TransportError:
        return None


def test_the_development_server_ends_with_its_parent(url: str) -> None:
    # Simulates a killed terminal or editor, whose children stay.
    parent = ["sh", "-c", "./start-reload.sh & wait"]
    with run_server(url, parent) as server:
        processes = started_processes(server)
        assert len(processes) == 2

        server.process.kill()

        wait_for(lambda: not any(is_running(pid) for pid in processes), "the end of the development server")


def started_processes(server: Server) -> set[int]:
    """Return the ids of uvicorn's processes, including the reloader."""
    return {int(pid) for pid in re.findall(r"Started (?:reloader|server) process \[(\d+)\]", server.log)}


@pytest.mark.parametrize("command", [*MANAGERS.values(), SERVE], ids=[*MANAGERS, "serve"])
def test_a_server_writes_no_colors_into_a_file(empty_url: str, command: Sequence[str]) -> None:
    with run_server(empty_url, command, LOG_FORMAT="console") as server:
        assert server.get("/api/v1/users/me").status_code == 401
        wait_for(lambda: "/users/me" in server.log, "the access line")
        assert server.stop() == 0

        assert "\x1b" not in server.log
