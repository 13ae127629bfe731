"""A closed-loop load on loopback: a number of clients, each of which sends its next request after a response.

The load runs in a separate process, on cores that the server does not use. It needs about 30 us for each request, so
a server that needs longer is always busy.
"""

import json
import os
import random
import selectors
import socket
import subprocess
import sys
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles
from typing import Self

CLIENTS = 32
SECONDS = 1.5
PATIENCE_SECONDS = 60
END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True)
class Call:
    """A request. If a load has several, a client chooses one of them at random each time."""

    method: str
    path: str
    headers: dict[str, str]
    body: str = ""

    def encode(self) -> bytes:
        headers = {"Host": "localhost", **self.headers}
        if self.body:
            headers["Content-Length"] = str(len(self.body.encode()))
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", self.body]).encode()


@dataclass(frozen=True)
class Outcome:
    seconds: float
    # How many answers had each status; 0 stands for a connection that was lost.
    statuses: dict[int, int]
    # Response times in milliseconds, of responses with a status below 300; `refused_p99` measures all other responses.
    p50: float
    p99: float
    worst: float
    refused_p99: float

    @property
    def answered(self) -> int:
        return sum(self.statuses.values())

    @property
    def succeeded(self) -> int:
        return sum(count for status, count in self.statuses.items() if 200 <= status < 300)

    @property
    def per_second(self) -> float:
        return self.succeeded / self.seconds

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        return cls(**{**values, "statuses": {int(key): value for key, value in values["statuses"].items()}})


class Client:
    def __init__(self, address: tuple[str, int], requests: Sequence[bytes]) -> None:
        self._address = address
        self._requests = requests
        self.open()

    def open(self) -> None:
        self.socket = socket.create_connection(self._address, timeout=PATIENCE_SECONDS)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> None:
        self._received = b""
        self._length = -1
        self.asked_at = time.perf_counter()
        self.socket.send(random.choice(self._requests))  # noqa: S311  # nothing secret

    def read(self) -> int | None:
        """Return the status when the response is complete, and None before."""
        chunk = self.socket.recv(65536)
        if not chunk:
            raise ConnectionError
        self._received += chunk
        if self._length < 0:
            end = self._received.find(END_OF_HEAD)
            if end < 0:
                return None
            self._length = end + len(END_OF_HEAD) + _content_length(self._received[:end])
        return int(self._received[9:12]) if len(self._received) >= self._length else None


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            return int(line[15:])
    return 0


def generate(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Outcome:
    statuses: Counter[int] = Counter()
    good, other = array("d"), array("d")
    with selectors.DefaultSelector() as selector:
        for _ in range(clients):
            client = Client(("127.0.0.1", port), requests)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.ask()
        started = time.perf_counter()
        while (now := time.perf_counter()) < started + seconds:
            for key, _ in selector.select(timeout=0.1):
                client = key.data
                try:
                    status = client.read()
                    if status is None:
                        continue
                    statuses[status] += 1
                    (good if status < 300 else other).append(time.perf_counter() - client.asked_at)
                    client.ask()
                except OSError:
                    statuses[0] += 1
                    selector.unregister(client.socket)
                    client.socket.close()
                    client.open()
                    selector.register(client.socket, selectors.EVENT_READ, client)
                    client.ask()
        elapsed = now - started
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    return Outcome(
        elapsed,
        dict(statuses),
        _percentile(good, 50),
        _percentile(good, 99),
        max(good, default=0) * 1000,
        _percentile(other, 99),
    )


def _percentile(seconds: Sequence[float], number: int) -> float:
    if len(seconds) < 2:
        return sum(seconds) * 1000
    return quantiles(seconds, n=100)[number - 1] * 1000


@dataclass
class Load:
    """A running load; `wait` returns its outcome."""

    process: "subprocess.Popen[str]"

    @classmethod
    def start(
        cls, port: int, calls: Sequence[Call], *, clients: int = CLIENTS, seconds: float = SECONDS, cores: set[int]
    ) -> Self:
        order = {"port": port, "calls": [asdict(call) for call in calls], "clients": clients, "seconds": seconds}
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load", json.dumps(sorted(cores))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        json.dump(order, process.stdin)
        process.stdin.close()
        return cls(process)

    def wait(self) -> Outcome:
        assert self.process.stdout is not None
        with self.process, self.process.stdout:
            text = self.process.stdout.read()
        assert self.process.returncode == 0
        return Outcome.from_json(text)


def main() -> None:
    os.sched_setaffinity(0, json.loads(sys.argv[1]))
    order = json.load(sys.stdin)
    requests = [Call(**call).encode() for call in order["calls"]]
    outcome = generate(order["port"], requests, order["clients"], order["seconds"])
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
