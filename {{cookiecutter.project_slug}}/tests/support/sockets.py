"""Sockets as systemd passes them, and the client address that the service takes from their connections."""

import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers import Server, run_server, wait_for

FORWARDED = {"X_Forwarded_For": "203.0.113.9", "X_Forwarded_Proto": "https"}
# Passes sockets as systemd does: as file descriptors from 3 on, with the id of the receiving process in LISTEN_PID.
HAND_OVER = """
import os, sys
for number, fd in enumerate(map(int, sys.argv[1].split(","))):
    os.dup2(fd, 3 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(number + 1))
os.execvp(sys.argv[2], sys.argv[2:])
"""


def see_client(server: Server, **headers: str) -> object:
    """Return the client address that the service logs, which is the forwarded one if the service trusts the sender."""
    before = len(access_lines(server))
    answer = server.get("/api/v1/users", **headers)
    assert answer.status_code == 401, answer.text
    wait_for(lambda: len(access_lines(server)) > before, "the access line")
    return access_lines(server)[-1]["client"]


def access_lines(server: Server) -> list[dict[str, object]]:
    return [event for event in server.events if event["event"] == "request"]


def hold_port() -> socket.socket:
    """A reserved port on which nothing listens yet."""
    held = socket.socket()
    held.bind(("127.0.0.1", 0))
    return held


def listen_tcp() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def listen_unix(path: Path) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()
    return listening


@contextmanager
def run_inherited(
    url: str,
    command: Sequence[str],
    *sockets: socket.socket,
    unix_socket: Path | None = None,
    trusted: str = "127.0.0.1",
) -> Iterator[Server]:
    fds = [inherited.fileno() for inherited in sockets]
    started = [sys.executable, "-c", HAND_OVER, ",".join(map(str, fds)), *command]
    with run_server(url, started, unix_socket=unix_socket, pass_fds=fds, FORWARDED_ALLOW_IPS=trusted) as server:
        yield server
