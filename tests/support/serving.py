"""Start a project's server, and check that none of its processes is left after it is stopped."""

import json
import os
import random
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.support.programs import person_environment

START_TIMEOUT_SECONDS = 300  # the first start installs the packages
STOP_TIMEOUT_SECONDS = 60
ANSWER_TIMEOUT_SECONDS = 60
# Below the ephemeral ports, because another connection could take an ephemeral port before the server binds it.
PORTS = range(20_000, 32_000)


def find_free_port() -> int:
    while True:
        port = random.choice(PORTS)  # noqa: S311  # a port is no secret
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(is_so: Callable[[], bool], timeout_seconds: float, describe: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not is_so():
        assert time.monotonic() < deadline, f"Not within {timeout_seconds} seconds: {describe()}"
        time.sleep(0.1)


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Message = field(default_factory=Message)

    @property
    def json(self) -> Any:  # noqa: ANN401  # JSON, whose structure depends on the route
        return json.loads(self.body)


class RunningServer:
    """A server, started by a command in a new session, as a terminal would start it."""

    def __init__(self, command: Sequence[str], folder: Path, *, probe: str = "/docs", **variables: str) -> None:
        """Start the command and wait until the path `probe` responds with 200."""
        self._probe = probe
        self._port = find_free_port()
        self._mark = uuid4().hex
        self._log = folder / f"server-{self._mark}.log"
        started = time.monotonic()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                ["env", "--default-signal=HUP", *command],  # nohup would leave SIGHUP ignored
                cwd=folder,
                env=person_environment(PORT=str(self._port), TEST_MARK=self._mark, **variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(lambda: self._has_ended() or self._answers(), START_TIMEOUT_SECONDS, self.read_log)
            assert not self._has_ended(), self.read_log()
        except BaseException:
            self.clean_up()
            raise
        self.seconds_to_start = time.monotonic() - started

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _has_ended(self) -> bool:
        return self.process.poll() is not None

    def _answers(self) -> bool:
        try:
            return self.request("GET", self._probe).status == 200
        except OSError:
            return False

    def request(
        self,
        method: str,
        path: str,
        body: dict[str, str] | None = None,
        *,
        token: str | None = None,
        form: bool = False,
    ) -> Answer:
        data, headers = None, {}
        if body is not None:
            data = (urllib.parse.urlencode(body) if form else json.dumps(body)).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded" if form else "application/json"
        if token:
            headers["Authorization"] = f"Bearer {token}"
        url = f"{self.base_url}{path}"
        request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310  # http, to an address of this test
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_TIMEOUT_SECONDS) as response:  # noqa: S310  # http, to an address of this test
                return Answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.read())

    def read_log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def list_processes(self) -> dict[int, str]:
        """Return the command lines of the command and its descendants, by process id; a variable identifies them."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
            except OSError:  # the process has ended, or belongs to another user
                continue
        return found

    def stop(self, number: int, *, group: bool) -> None:
        """Signal the command, or its group as Ctrl-C does, and check that no process is left."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        wait_until(self._has_ended, STOP_TIMEOUT_SECONDS, lambda: f"the command ends; its log:\n{self.read_log()}")
        wait_until(lambda: not self.list_processes(), STOP_TIMEOUT_SECONDS, lambda: f"{self.list_processes()} end")

    def clean_up(self) -> None:
        """End the processes that a failed test has left; SIGTERM first, so that a database can shut down."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.list_processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
            with suppress(AssertionError):
                wait_until(lambda: not self.list_processes(), STOP_TIMEOUT_SECONDS, str)
        self.process.wait(STOP_TIMEOUT_SECONDS)
        self._log.unlink()


@contextmanager
def serve(command: Sequence[str], folder: Path, *, probe: str = "/docs", **variables: str) -> Iterator[RunningServer]:
    server = RunningServer(command, folder, probe=probe, **variables)
    try:
        yield server
    finally:
        server.clean_up()
