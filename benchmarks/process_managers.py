"""How gunicorn, supervisor and circus compare: `make bench-process-managers`.

Serves three baked projects (SQLite, two workers) on loopback, puts load on one at a time, and prints a table. The load
is small: for a few seconds, four clients with persistent connections request the liveness probe, which uses no
database.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from statistics import median
from threading import Event
from urllib.parse import urlsplit

from benchmarks.projects import PROGRAMS, bake
from tests.support.programs import person_environment
from tests.support.serving import RunningServer, serve, wait_until
from tests.support.template import CHOICES

CLIENTS = 4
WORKERS = 2
LOAD_SECONDS = 2
ROUNDS = 5
CRASH_SECONDS = 10
MAX_REQUESTS = 1000
PATIENCE_SECONDS = 60
HANG_SECONDS = 10


def ask_until(base_url: str, is_over: Callable[[], bool]) -> list[bool]:
    """Send requests until `is_over`, and return for each whether it succeeded."""
    outcomes = []
    connection = HTTPConnection(urlsplit(base_url).netloc, timeout=PATIENCE_SECONDS)
    while not is_over():
        try:
            connection.request("GET", "/health/live")
            response = connection.getresponse()
            response.read()
            outcomes.append(response.status == 200)
        except (HTTPException, OSError):
            outcomes.append(False)
            connection.close()
    connection.close()
    return outcomes


def put_under_load(server: RunningServer, act: Callable[[], None]) -> tuple[int, int, float]:
    """Run `act` under load; return the number of failed requests, of all requests, and the seconds that `act` took."""
    ended = Event()
    with ThreadPoolExecutor() as threads:
        loads = [threads.submit(ask_until, server.base_url, ended.is_set) for _ in range(CLIENTS)]
        started = time.monotonic()
        try:
            act()
        finally:
            seconds = time.monotonic() - started
            ended.set()
    outcomes = [outcome for load in loads for outcome in load.result()]
    return outcomes.count(False), len(outcomes), seconds


class Measured:
    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.manager = server.process.pid
        self.wait(lambda: len(self.workers()) == WORKERS, "the workers")

    def workers(self) -> set[int]:
        """Return the process ids of the workers, which are the manager's children."""
        children = Path(f"/proc/{self.manager}/task/{self.manager}/children")
        return {int(pid) for pid in children.read_text().split()} if children.exists() else set()

    def wait(self, is_so: Callable[[], bool], what: str) -> None:
        wait_until(is_so, PATIENCE_SECONDS, lambda: what)

    def count_starts(self) -> int:
        return self.server.read_log().count("Application startup complete.")

    def wait_for_starts(self, count: int) -> None:
        self.wait(lambda: self.count_starts() >= count, f"{count} starts")

    def reload(self) -> None:
        before = self.count_starts()
        os.kill(self.manager, signal.SIGHUP)
        self.wait_for_starts(before + WORKERS)

    def lose_worker(self, number: signal.Signals) -> None:
        before = self.count_starts()
        os.kill(min(self.workers()), number)
        self.wait_for_starts(before + 1)

    def crash_again_and_again(self) -> tuple[int, float]:
        """Kill each worker as soon as it appears; return the starts per minute, and the seconds until all serve."""
        before, seen = self.workers(), set()
        deadline = time.monotonic() + CRASH_SECONDS
        while time.monotonic() < deadline:
            for pid in self.workers():
                # The manager may already have reaped the process.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                seen.add(pid)
            time.sleep(0.05)
        starts, ended = self.count_starts(), time.monotonic()
        self.wait_for_starts(starts + WORKERS)
        return round(len(seen - before) * 60 / CRASH_SECONDS), time.monotonic() - ended

    def lose_manager(self) -> float:
        workers = self.workers()
        started = time.monotonic()
        os.kill(self.manager, signal.SIGKILL)
        self.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the end of the workers")
        seconds = time.monotonic() - started
        # A killed manager cannot remove the folder of metrics.
        for folder in Path("/dev/shm").glob("metrics-*"):  # noqa: S108  # only what these workers have made
            if any((folder / f"gauge_livesum_{pid}.db").exists() for pid in workers):
                shutil.rmtree(folder)
        return seconds


def read_memory_mib(pid: int) -> float:
    """Return the proportional set size (PSS) of a process: private memory, and a share of shared memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


Row = tuple[str, str]


def measure(server: RunningServer) -> Iterator[Row]:
    yield "time to the first answer", f"{server.seconds_to_start:.1f} s"
    measured = Measured(server)
    measured.wait_for_starts(WORKERS)
    yield "memory of the manager", f"{read_memory_mib(measured.manager):.0f} MiB"
    for name, act in (
        ("reload", measured.reload),
        ("`kill -9` of a worker", lambda: measured.lose_worker(signal.SIGKILL)),
        ("a worker that hangs", lambda: measured.lose_worker(signal.SIGSTOP)),
    ):
        failed, requests, seconds = put_under_load(server, act)
        yield f"{name}: requests that failed, time until it is over", f"{failed} of {requests:,}, {seconds:.1f} s"
    count, seconds = measured.crash_again_and_again()
    yield "workers that die at once: starts a minute, time until all serve again", f"{count}, {seconds:.1f} s"
    yield "`kill -9` of the manager: time until its workers are gone", f"{measured.lose_manager():.1f} s"


def measure_recycling(server: RunningServer) -> Iterator[Row]:
    measured = Measured(server)
    measured.wait_for_starts(WORKERS)
    failed, requests, _ = put_under_load(server, lambda: measured.wait_for_starts(2 * WORKERS))
    yield f"`MAX_REQUESTS={MAX_REQUESTS}`: requests that failed until each worker was new", f"{failed} of {requests:,}"


def measure_failing_start(project: Path, settings: dict[str, str]) -> Row:
    started = time.monotonic()
    environment = person_environment(**settings, PORT="0", DATABASE_NAME=str(project))
    done = subprocess.run(["./start.sh"], cwd=project, env=environment, capture_output=True, timeout=PATIENCE_SECONDS)
    return "a start that cannot work ends with", f"{done.returncode}, after {time.monotonic() - started:.1f} s"


def measure_manager(project: Path, settings: dict[str, str]) -> dict[str, str]:
    with serve(["./start.sh"], project, **settings) as server:
        rows = dict(measure(server))
    with serve(["./start.sh"], project, **settings, MAX_REQUESTS=str(MAX_REQUESTS)) as server:
        rows |= measure_recycling(server)
    return rows | dict([measure_failing_start(project, settings)])


def measure_throughput(projects: dict[str, Path], settings: dict[str, str]) -> dict[str, Row]:
    """Measure the managers in turns, so that other load on the machine affects all of them."""
    rates: dict[str, list[float]] = {manager: [] for manager in projects}
    with ExitStack() as stack:
        servers = {
            manager: stack.enter_context(serve(["./start.sh"], project, **settings))
            for manager, project in projects.items()
        }
        for _ in range(ROUNDS):
            for manager, server in servers.items():
                _, requests, seconds = put_under_load(server, lambda: time.sleep(LOAD_SECONDS))
                rates[manager].append(requests / seconds)
    name = f"requests a second: the median of {ROUNDS} rounds, and their range"
    return {
        manager: (name, f"{median(own):,.0f}, {min(own):,.0f} to {max(own):,.0f}") for manager, own in rates.items()
    }


def main() -> None:
    settings = {
        "PATH": PROGRAMS,
        "UPDATE_DB": "1",
        "WEB_CONCURRENCY": str(WORKERS),
        "WORKER_TIMEOUT_SECONDS": str(HANG_SECONDS),
        "ACCESS_LOG": "false",
    }
    with tempfile.TemporaryDirectory() as folder:
        projects = {
            manager: bake(Path(folder), database="sqlite", process_manager=manager, project_slug=f"my-{manager}")
            for manager in CHOICES["process_manager"]
        }
        throughput = measure_throughput(projects, settings)
        columns = {
            manager: dict([throughput[manager]]) | measure_manager(project, settings)
            for manager, project in projects.items()
        }
    print(f"| | {' | '.join(columns)} |")
    print("|---" * (len(columns) + 1) + "|")
    for row in columns["gunicorn"]:
        print(f"| {row} | {' | '.join(column[row] for column in columns.values())} |")


if __name__ == "__main__":
    main()
