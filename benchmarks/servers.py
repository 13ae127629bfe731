"""Servers to measure, pinned to one core; the load and the databases run on the other cores."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.load import Call, Load, Outcome
from benchmarks.projects import PROGRAMS
from tests.support.serving import RunningServer, serve
from tests.support.template import ROOT

SERVER_CORE = min(os.sched_getaffinity(0))
OTHER_CORES = os.sched_getaffinity(0) - {SERVER_CORE} or {SERVER_CORE}
HOST = "service.example.com"
SECRET_KEY = "5f0c9e1ab34d7826" * 4  # used only by the benchmarks
PINNED = ("taskset", "--cpu-list", str(SERVER_CORE))
FLOOR = "exec gunicorn --worker-class uvicorn_worker.UvicornWorker --bind 127.0.0.1:$PORT --no-control-socket"


def tree(pid: int) -> list[psutil.Process]:
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


class Usage:
    """The resources of a process and its descendants: CPU time so far, and the memory and files that they have now."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def cpu_seconds(self) -> float:
        times = [process.cpu_times() for process in tree(self._pid)]
        return sum(time.user + time.system for time in times)

    def memory_mib(self) -> float:
        """Return the proportional set size (PSS) of all processes: private memory, and a share of shared memory."""
        return sum(process.memory_full_info().pss for process in tree(self._pid)) / 1024**2

    def open_files(self) -> int:
        return sum(process.num_fds() for process in tree(self._pid))


class Database:
    """A PostgreSQL server that only the benchmarks use, or an SQLite file."""

    def __init__(self, url: str, pid: int | None = None) -> None:
        self.url = url
        self._usage = Usage(pid) if pid else None

    @property
    def kind(self) -> str:
        return "PostgreSQL" if self._usage else "SQLite"

    @property
    def driver_address(self) -> str:
        return self.url if self._usage else self.url.removeprefix("sqlite:///")

    def cpu_seconds(self) -> float:
        return self._usage.cpu_seconds() if self._usage else 0


@contextmanager
def serve_postgres(project: Path) -> Iterator[Database]:
    process = subprocess.Popen(
        [
            *("taskset", "--cpu-list", ",".join(map(str, sorted(OTHER_CORES)))),
            *(sys.executable, "-m", "scripts.embedded_postgres", "sh", "-c", 'echo "$DATABASE_URL"; exec sleep 3600'),
        ],
        cwd=project,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield Database(process.stdout.readline().strip(), process.pid)
    finally:
        process.terminate()
        process.wait()


class Server:
    def __init__(self, running: RunningServer, database: Database | None) -> None:
        self.running = running
        self.port = int(running.base_url.rpartition(":")[2])
        self.usage = Usage(running.process.pid)
        self.database = database

    def start_load(self, calls: Sequence[Call], *, clients: int, seconds: float) -> Load:
        return Load.start(self.port, calls, clients=clients, seconds=seconds, cores=OTHER_CORES)

    def load(self, calls: Sequence[Call], *, clients: int, seconds: float) -> Outcome:
        return self.start_load(calls, clients=clients, seconds=seconds).wait()

    def worker_memory_mib(self) -> float:
        (worker,) = psutil.Process(self.running.process.pid).children()
        return float(worker.memory_full_info().rss) / 1024**2


@contextmanager
def serve_project(
    project: Path, database: Database, *, prefix: Sequence[str] = PINNED, **settings: str
) -> Iterator[Server]:
    """Serve a project as in production: gunicorn with one worker, all middleware, and no access log (nginx has one)."""
    production = {
        "ENVIRONMENT": "production",
        "SECRET_KEY": SECRET_KEY,
        "ALLOWED_HOSTS": f"{HOST},127.0.0.1",
        "DATABASE_URL": database.url,
        "ACCESS_LOG": "false",
        "WEB_CONCURRENCY": "1",
        "ACCESS_TOKEN_LIFETIME_SECONDS": "7200",
        "UPDATE_DB": "1",
        "PATH": PROGRAMS,
    }
    with serve([*prefix, "./start.sh"], project, probe="/health/live", **{**production, **settings}) as running:
        yield Server(running, database)


@contextmanager
def serve_floor(folder: Path, app: str, database: Database | None = None, issuer: str = "") -> Iterator[Server]:
    variables = {
        "PATH": PROGRAMS,
        "PYTHONPATH": str(ROOT),
        "FLOOR_DATABASE": database.driver_address if database else "",
        "FLOOR_KEY": SECRET_KEY,
        "FLOOR_ISSUER": issuer,
    }
    command = [*PINNED, "sh", "-c", f"{FLOOR} 'benchmarks.floors:{app}'"]
    with serve(command, folder, probe="/health/live", **variables) as running:
        yield Server(running, database)


def cpu_seconds_to_first_answer(project: Path, database: Database) -> float:
    with serve_project(project, database) as server:
        return server.usage.cpu_seconds()


def cpu_seconds_of_imports(*modules: str) -> float:
    """Return the CPU time to start Python and import these modules: the minimum that any start needs."""
    before = os.times()
    subprocess.run([*PINNED, sys.executable, "-c", f"import {', '.join(modules)}"], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system
