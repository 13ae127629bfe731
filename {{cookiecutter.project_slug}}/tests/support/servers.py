"""Run the service in real processes, each on its own port or socket."""

import asyncio
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from uuid import uuid4

import httpx2
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.core.db.engine import create_owner_engine
from app.core.project import ROOT
from tests.support.accounts import PASSWORD, TOKEN_PATH
from tests.support.databases import REQUIRED_ENVIRONMENT, SECRET_KEY, make_settings

# Generous, for busy machines; the usual wait is below a second.
PATIENCE_SECONDS = 120
START = ("./start.sh",)
# start.sh runs one of these process managers. If the files of several managers are present, each manager is tested.
MANAGERS: dict[str, tuple[str, ...]] = {
    path.parent.name: ("python", "-m", f"deploy.{path.parent.name}.{path.stem}")
    for path in sorted(ROOT.glob("deploy/*/run_*.py"))
}
if (ROOT / "gunicorn_conf.py").exists():
    MANAGERS["gunicorn"] = ("python", "-m", "gunicorn", "--config", "gunicorn_conf.py")
# The worker class `asgi` is gunicorn's own, so it is not tested with other process managers.
WORKER_CLASSES = {
    f"{name}-{worker_class}": (command, worker_class)
    for name, command in MANAGERS.items()
    for worker_class in ("uvicorn_worker.UvicornWorker", "uvicorn_worker.UvicornH11Worker", "asgi")
    if name == "gunicorn" or worker_class != "asgi"
}
SERVE = ("python", "-m", "app", "serve")
# uvicorn as its own process manager.
SERVE_TWO = (*SERVE, "--workers", "2")
UVICORN = ("uvicorn", "app.main:app", "--port", "0")
ADDRESS = re.compile(r"(?:Listening at: .*|Uvicorn running on )(http://[\w.:\[\]]+)")
# The log messages of uvicorn and of gunicorn's own worker.
STARTED = ("Application startup complete.", "ASGI server listening")
# Loading the system's certificates for each connection takes longer than the request.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

T = TypeVar("T")


def make_environment(url: str, **changes: str) -> dict[str, str]:
    """Return the environment of a process; it inherits only PATH and the folders for tests from this process."""
    return {
        # The folder of this `python`, which also contains `gunicorn` and `uvicorn`, comes first.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "ENVIRONMENT": "test",
        "SECRET_KEY": SECRET_KEY,
        **REQUIRED_ENVIRONMENT,
        "DATABASE_URL": url,
        "PASSWORD_HASH_TIME_COST": "1",
        "PASSWORD_HASH_MEMORY_COST": "8",
        # A pause of the machine must not fail a test; tests of timeouts set their own values.
        "DATABASE_POOL_TIMEOUT_SECONDS": "60",
        "DATABASE_STATEMENT_TIMEOUT_SECONDS": "60",
        "READINESS_TIMEOUT_SECONDS": "60",
        "LOG_FORMAT": "json",
        "PORT": "0",
        "WEB_CONCURRENCY": "1",
        # A fixture sets these folders for each test; a server that several tests share has no folders.
        "EMAIL_FOLDER": os.environ.get("EMAIL_FOLDER", ""),
        "STORAGE_FOLDER": os.environ.get("STORAGE_FOLDER", ""),
        **changes,
    }


def wait_for(condition: Callable[[], T], what: str, timeout: float = PATIENCE_SECONDS) -> T:
    """Wait until the condition is true, and return its value."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)
    return result


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    log_file: Path
    unix_socket: Path | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    @property
    def events(self) -> list[dict[str, object]]:
        """Return the complete lines of the log; fail if one is not JSON."""
        return [json.loads(line) for line in self.log.rpartition("\n")[0].splitlines()]

    @property
    def base_url(self) -> str:
        return "http://localhost" if self.unix_socket else ADDRESS.findall(self.log)[-1]

    @property
    def workers(self) -> set[int]:
        """The process ids of the live workers.

        With gunicorn, a worker counts from its start; with uvicorn, once it has loaded the application.
        """
        booted = re.findall(r"(?:Booting worker with pid: |Started server process \[)(\d+)", self.log)
        return {int(pid) for pid in booted if is_running(int(pid))}

    def open_client(self) -> httpx2.Client:
        transport = httpx2.HTTPTransport(verify=NO_TLS, uds=str(self.unix_socket) if self.unix_socket else None)
        return httpx2.Client(transport=transport, base_url=self.base_url, timeout=PATIENCE_SECONDS)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        """Send a request over a new connection."""
        with self.open_client() as client:
            return client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def count_started(self) -> int:
        return sum(self.log.count(word) for word in STARTED)

    def wait_until_started(self, workers: int = 1) -> None:
        wait_for(lambda: self._has_ended() or self.count_started() >= workers, "the start")
        assert not self._has_ended(), self.log
        wait_for(self._is_live, "the first answer")

    def _has_ended(self) -> bool:
        return self.process.poll() is not None

    def _is_live(self) -> bool:
        try:
            return self.get("/health/live").status_code == 200
        except (IndexError, httpx2.TransportError):
            # The address of the server is not known yet.
            return False

    def wait_for_event(self, words: str) -> None:
        wait_for(lambda: words in self.log, words)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Return the exit code; negative when a signal ended the process."""
        return self.process.wait(PATIENCE_SECONDS)

    def stop(self) -> int:
        self.send(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """Kill all processes, including those that a process manager has put into separate groups."""
        workers = self.workers
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def run_server(
    url: str,
    command: Sequence[str] = START,
    *,
    workers: int = 1,
    unix_socket: Path | None = None,
    cwd: Path = ROOT,
    pass_fds: Sequence[int] = (),
    **changes: str,
) -> Iterator[Server]:
    """Start the service, wait until it responds, and stop all of its processes at the end."""
    environment = make_environment(url, **{"WEB_CONCURRENCY": str(workers), **changes})
    with start_process(command, environment, cwd=cwd, pass_fds=pass_fds) as server:
        server.unix_socket = unix_socket
        server.wait_until_started(workers)
        yield server


@contextmanager
def start_process(
    command: Sequence[str], environment: dict[str, str], *, cwd: Path = ROOT, pass_fds: Sequence[int] = ()
) -> Iterator[Server]:
    """Start a process in a new process group, and kill the group at the end."""
    with TemporaryDirectory(prefix="log-") as folder, (Path(folder) / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603  # a command of this test, without input from outside
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=pass_fds,
        )
        server = Server(process, Path(log.name))
        try:
            yield server
        finally:
            with suppress(subprocess.TimeoutExpired):
                server.stop()
            server.kill()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        # A zombie has ended, but its parent has not waited for it yet.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        # There is no /proc, or the process has ended since.
        return not Path("/proc/self").exists()


def sign_up(client: httpx2.Client) -> dict[str, str]:
    """Create a user, and return the headers that authenticate the user."""
    email = f"{uuid4().hex}@example.com"
    created = client.post("/api/v1/users", json={"email": email, "password": PASSWORD})
    assert created.status_code == 201, created.text
    token = client.post(TOKEN_PATH, data={"grant_type": "password", "username": email, "password": PASSWORD})
    return {"Authorization": f"Bearer {token.json()['access_token']}"}


def read_metric(server: Server, name: str) -> float:
    """Return the sum of all series with this prefix."""
    answer = server.get("/metrics")
    assert answer.status_code == 200, answer.text
    lines = answer.text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@contextmanager
def blocked_writes(url: str) -> Iterator[None]:
    """Hold the lock that every write to an account needs: requests with such a write wait until the block ends."""
    engine = create_owner_engine(make_settings(url))
    with asyncio.Runner() as runner:
        connection = runner.run(_lock(engine))
        try:
            yield
        finally:
            runner.run(_unlock(engine, connection))


async def _lock(engine: AsyncEngine) -> AsyncConnection:
    connection = await engine.connect()
    await connection.begin()
    if engine.dialect.name == "postgresql":
        await connection.execute(text("LOCK TABLE users IN EXCLUSIVE MODE"))
    return connection


async def _unlock(engine: AsyncEngine, connection: AsyncConnection) -> None:
    await connection.close()
    await engine.dispose()
