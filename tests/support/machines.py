"""A fresh server with systemd, which five commands control, and the service that runs on it."""

import fcntl
import itertools
import json
import os
import socket
import ssl
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.support.programs import run_program
from tests.support.serving import Answer, wait_until

# The folder of the commands up, run, push, reboot and down; see CONTRIBUTING.md.
COMMANDS = os.environ.get("TEST_MACHINE_COMMANDS")
# The release of the operating system for all servers, in place of the releases that the tests choose.
RELEASE = os.environ.get("TEST_MACHINE_RELEASE")
# A provision takes the longest: a minute or two on an idle machine.
TIMEOUT_SECONDS = 600


class Machine:
    def __init__(self, commands: Path, name: str) -> None:
        self.commands = commands
        self.name = name

    def _call(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_program([str(self.commands / command), *arguments], TIMEOUT_SECONDS)

    def _must(self, command: str, *arguments: str) -> str:
        done = self._call(command, *arguments)
        assert done.returncode == 0, f"{command} {arguments} failed with {done.returncode}:\n{done.stdout[-10000:]}"
        return done.stdout

    def run(self, script: str) -> str:
        """Run a shell script as root, and return its output; a failure shows the output."""
        return self._must("run", self.name, "--", "bash", "-euo", "pipefail", "-c", script).strip()

    def fails(self, script: str) -> str:
        """Run a shell script that must fail, and return its output."""
        done = self._call("run", self.name, "--", "bash", "-euo", "pipefail", "-c", script)
        assert done.returncode != 0, f"{script} did not fail:\n{done.stdout[-10000:]}"
        return done.stdout

    def push(self, source: Path, target: str) -> None:
        self._must("push", self.name, str(source), target)

    def reboot(self) -> None:
        self._must("reboot", self.name)

    @property
    def address(self) -> str:
        """The IPv4 address that the server uses to reach other machines."""
        return self.run("ip -4 -o route get 192.0.2.1 | sed 's/.* src \\([0-9.]*\\).*/\\1/'")


@contextmanager
def exclusive_lock(name: str) -> Iterator[None]:
    """Hold a lock that all processes of the tests share; the system releases it if the process dies."""

    def is_ours() -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    with Path(tempfile.gettempdir(), f"{name}.lock").open("w") as lock:
        wait_until(is_ours, 2 * TIMEOUT_SECONDS, lambda: f"{lock.name} is free")
        yield


@contextmanager
def start_machine(release: str | None) -> Iterator[Machine]:
    assert COMMANDS is not None
    options = ["-r", chosen] if (chosen := RELEASE or release) else []
    machine = Machine(Path(COMMANDS), f"t{uuid4().hex[:7]}")
    try:
        # One call at a time: the first one may build the image from which the other servers start.
        with exclusive_lock("test-machine"):
            machine._must("up", *options, machine.name)
        yield machine
    finally:
        machine._must("down", machine.name)


class Connection(HTTPSConnection):
    """Connects to the server's address, regardless of the address that the domain name resolves to."""

    def __init__(self, site: "Site") -> None:
        super().__init__(site.domain, timeout=20, context=site.context)
        self._site = site

    def connect(self) -> None:
        plain = socket.create_connection((self._site.address, 443), timeout=20)
        self.sock = self._site.context.wrap_socket(plain, server_hostname=self.host)


class Site:
    """The service on a server, over HTTPS; the certificate is verified."""

    def __init__(self, address: str, domain: str, trusted: str) -> None:
        self.address = address
        self.domain = domain
        self.context = ssl.create_default_context(cadata=trusted)
        # Strict verification, the default since Python 3.13, may refuse a self-signed certificate.
        self.context.verify_flags &= ~ssl.VERIFY_X509_STRICT

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, str] | None = None,
        *,
        token: str | None = None,
        form: bool = False,
        connection: HTTPConnection | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        sent = dict(headers or {})
        data = None
        if body is not None:
            data = (urllib.parse.urlencode(body) if form else json.dumps(body)).encode()
            sent["Content-Type"] = "application/x-www-form-urlencoded" if form else "application/json"
        if token:
            sent["Authorization"] = f"Bearer {token}"
        used = connection or Connection(self)
        try:
            used.request(method, path, data, sent)
            response = used.getresponse()
            return Answer(response.status, response.read(), response.headers)
        finally:
            if connection is None:
                used.close()

    def answers(self) -> bool:
        try:
            return self.request("GET", "/health").status == 200
        except (OSError, HTTPException):
            return False

    def wait(self, timeout_seconds: float = 60) -> None:
        wait_until(self.answers, timeout_seconds, lambda: "the service answers")

    def redirect_of(self, path: str) -> tuple[int, str | None]:
        """Return the status and the location of a request over plain HTTP."""
        with closing(HTTPConnection(self.address, 80, timeout=20)) as connection:
            connection.request("GET", path, headers={"Host": self.domain})
            response = connection.getresponse()
            return response.status, response.getheader("Location")


class Load:
    """Requests at a steady rate below nginx's limits: half are POSTs, half use persistent connections."""

    THREADS = 4
    INTERVAL_SECONDS = 0.12
    MAX_SECONDS = 300
    # Long enough for the last request of each thread to time out.
    STOP_SECONDS = 60

    def __init__(self, site: Site, token: str) -> None:
        self._site = site
        self._token = token
        self._stopping = threading.Event()
        self.outcomes: Counter[Any] = Counter()
        self._threads = [
            threading.Thread(target=self._work, args=(number,), daemon=True) for number in range(self.THREADS)
        ]

    def _work(self, number: int) -> None:
        kept = Connection(self._site) if number % 2 else None
        deadline = time.monotonic() + self.MAX_SECONDS
        for count in itertools.count():
            if self._stopping.is_set() or time.monotonic() > deadline:
                break
            self.outcomes[self._ask("POST" if count % 2 else "GET", kept)] += 1
            time.sleep(self.INTERVAL_SECONDS)
        if kept:
            kept.close()

    def _ask(self, method: str, connection: Connection | None) -> Any:  # noqa: ANN401  # a status, or the error that occurred
        body = {"title": "Under load"} if method == "POST" else None
        path = "/api/v1/todos" if method == "POST" else "/api/v1/todos?limit=1"
        try:
            return method, self._site.request(method, path, body, token=self._token, connection=connection).status
        except (OSError, HTTPException) as error:
            if connection:
                connection.close()
            return method, repr(error)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        deadline = time.monotonic() + self.STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), "a request has not ended"
