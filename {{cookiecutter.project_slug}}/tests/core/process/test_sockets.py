"""The listening sockets, and the proxies that are trusted for the client's address."""

import signal
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.support.servers import MANAGERS, NO_TLS, SERVE, SERVE_TWO, WORKER_CLASSES, run_server, wait_for
from tests.support.sockets import FORWARDED, access_lines, listen_tcp, listen_unix, run_inherited, see_client

pytestmark = pytest.mark.processes

served = pytest.mark.parametrize(
    ("command", "worker_class"),
    [*WORKER_CLASSES.values(), (SERVE, "uvicorn_worker.UvicornWorker")],
    ids=[*WORKER_CLASSES, "serve"],
)
managed = pytest.mark.parametrize("command", MANAGERS.values(), ids=MANAGERS)


@pytest.mark.parametrize(("command", "worker_class"), WORKER_CLASSES.values(), ids=WORKER_CLASSES)
def test_unix_socket_is_private_and_its_forwarded_headers_are_trusted(
    empty_url: str, socket_folder: Path, command: Sequence[str], worker_class: str
) -> None:
    path = socket_folder / "app.sock"
    with run_server(empty_url, command, unix_socket=path, UNIX_SOCKET=str(path), WORKER_CLASS=worker_class) as server:
        mode = stat.S_IMODE(path.stat().st_mode)

        assert mode == 0o770
        assert see_client(server, **FORWARDED) == "203.0.113.9"
        assert server.stop() == 0
        assert not path.exists()


@served
def test_only_entry_added_by_trusted_proxy_names_client_over_tcp(
    empty_url: str, command: Sequence[str], worker_class: str
) -> None:
    # LISTEN_PID names another process, so the service must ignore LISTEN_FDS.
    with run_server(empty_url, command, WORKER_CLASS=worker_class, LISTEN_PID="1", LISTEN_FDS="1") as server:
        forged = see_client(server, X_Forwarded_For="198.51.100.7, 203.0.113.9", X_Forwarded_Proto="https")
        none = see_client(server)

        assert forged == "203.0.113.9"
        assert none == "127.0.0.1"


@served
def test_forwarded_headers_of_untrusted_client_are_ignored_over_tcp(
    empty_url: str, command: Sequence[str], worker_class: str
) -> None:
    with run_server(empty_url, command, WORKER_CLASS=worker_class, FORWARDED_ALLOW_IPS="192.0.2.1") as server:
        assert see_client(server, X_Forwarded_For="203.0.113.9") == "127.0.0.1"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="the kernel has no socket for both versions of IP")
@pytest.mark.parametrize("command", [*MANAGERS.values(), SERVE, SERVE_TWO], ids=[*MANAGERS, "serve", "serve with two"])
def test_host_with_all_ipv6_addresses_also_accepts_ipv4(empty_url: str, command: Sequence[str]) -> None:
    with run_server(empty_url, command, HOST="::", FORWARDED_ALLOW_IPS="127.0.0.1") as server:
        port = urlsplit(server.base_url).port
        for address in ("127.0.0.1", "[::1]"):
            asked = httpx2.get(f"http://{address}:{port}/health/live", verify=NO_TLS, timeout=60)
            assert asked.status_code == 200
        before = len(access_lines(server))
        httpx2.get(f"http://127.0.0.1:{port}/", headers={"X-Forwarded-For": "203.0.113.9"}, verify=NO_TLS, timeout=60)
        wait_for(lambda: len(access_lines(server)) > before, "the access line")

        assert access_lines(server)[-1]["client"] == "203.0.113.9"
        assert server.stop() == 0


@managed
def test_an_inherited_unix_socket_outlives_the_service_and_is_trusted_after_a_reload(
    empty_url: str, socket_folder: Path, command: Sequence[str]
) -> None:
    path = socket_folder / "app.sock"
    with listen_unix(path) as inherited, run_inherited(empty_url, command, inherited, unix_socket=path) as server:
        assert see_client(server, **FORWARDED) == "203.0.113.9"
        server.send(signal.SIGHUP)
        wait_for(lambda: server.count_started() == 2 and len(server.workers) == 1, "the new worker")

        assert see_client(server, **FORWARDED) == "203.0.113.9"
        assert server.stop() == 0
        assert path.exists()


@managed
def test_request_waits_on_inherited_socket_while_service_restarts(empty_url: str, command: Sequence[str]) -> None:
    with listen_tcp() as inherited:
        with run_inherited(empty_url, command, inherited) as server:
            assert see_client(server, X_Forwarded_For="198.51.100.7, 203.0.113.9") == "203.0.113.9"
            assert server.stop() == 0
        with socket.create_connection(inherited.getsockname(), timeout=60) as waiting:
            waiting.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            with run_inherited(empty_url, command, inherited):
                assert waiting.recv(1000).startswith(b"HTTP/1.1 200")
