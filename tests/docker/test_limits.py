"""Limits of nginx: body sizes, request rates, connections, and denied addresses."""

import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx2

from tests.support.containers import CONCURRENCY, DOMAIN, PAGE_ORIGIN, RECOVERY_SECONDS, Stack, unverified
from tests.support.serving import wait_until


def test_nginx_refuses_a_body_that_is_too_large(stack: Stack, user: dict[str, str]) -> None:
    fits = stack.request("POST", "/api/v1/todos", content=b"x" * 1024 * 1024, headers=user)
    refused = stack.request("POST", "/api/v1/todos", content=b"x" * (1024 * 1024 + 1), headers=user)

    assert fits.status_code == 415
    assert refused.status_code == 413
    assert refused.headers["content-type"] == "application/problem+json"
    assert "x-request-id" not in refused.headers
    assert "access-control-allow-origin" not in refused.headers


def test_upload_routes_accept_larger_bodies(stack: Stack) -> None:
    # This route does not exist, so a body that nginx forwards is refused by the application's own, smaller limit.
    path = f"/api/v1/{uuid4().hex}/file"
    forwarded = stack.request("PUT", path, content=b"x" * 10 * 1024 * 1024)
    refused = stack.request("PUT", path, content=b"x" * (11 * 1024 * 1024 + 1))

    assert [forwarded.status_code, refused.status_code] == [413, 413]
    assert "x-request-id" in forwarded.headers
    assert "x-request-id" not in refused.headers


ALSO_LIMITED = (
    "auth/confirmation",
    "auth/email/verify",
    "auth/password/reset",
    "auth/second-factor",
    "auth/second-factor/disable",
    "auth/passkeys/options",
    "auth/passkeys/sign-in",
    "users/me/password",
    "users/me/email",
)


def test_sign_ins_are_rate_limited_and_other_requests_are_not(stack: Stack, user: dict[str, str]) -> None:
    form = {"grant_type": "password", "password": "wrong"}

    def sign_in(_number: int) -> httpx2.Response:
        data, headers = form | {"username": f"{uuid4().hex}@example.com"}, {"Origin": PAGE_ORIGIN}
        return stack.request("POST", "/api/v1/auth/token", data=data, headers=headers)

    # Concurrently: nginx allows one more request each second, so sequential ones might not exceed the limit.
    with ThreadPoolExecutor(CONCURRENCY) as threads:
        answers = list(threads.map(sign_in, range(CONCURRENCY)))
    # Several requests to each path, so that they exceed the rate limit.
    as_costly = {path: [stack.request("POST", f"/api/v1/{path}", json={}) for _ in range(6)] for path in ALSO_LIMITED}

    # nginx's own responses have no request id; responses with one come from the application's throttles of accounts.
    refused = [answer for answer in answers if answer.status_code == 429 and "x-request-id" not in answer.headers]
    assert len(refused) >= 10
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].headers["content-type"] == "application/problem+json"
    assert refused[0].headers["access-control-allow-origin"] == PAGE_ORIGIN
    assert refused[0].headers["access-control-expose-headers"] == "Retry-After"
    for path, responses in as_costly.items():
        assert [r for r in responses if r.status_code == 429 and "x-request-id" not in r.headers], path
    assert stack.request("GET", "/api/v1/todos", headers=user).status_code == 200


def test_slow_clients_are_disconnected_and_block_nobody(stack: Stack, user: dict[str, str]) -> None:
    context = unverified()
    connections = []
    for _ in range(100):
        plain = socket.create_connection(("127.0.0.1", stack.https_port), timeout=20)
        connections.append(context.wrap_socket(plain, server_hostname=DOMAIN))
        connections[-1].send(b"POST /api/v1/todos HTTP/1.1\r\nHost: example.com\r\n")

    answered = stack.request("GET", "/api/v1/todos", headers=user).status_code
    started = time.monotonic()
    ends = [read_to_the_end(connection) for connection in connections]

    assert answered == 200
    assert time.monotonic() - started < 20
    assert not any(b"200" in end[:20] for end in ends)


def read_to_the_end(connection: ssl.SSLSocket) -> bytes:
    with connection:
        try:
            return connection.recv(65536)
        except (ConnectionResetError, ssl.SSLError):
            return b""


def test_connections_of_one_address_are_limited(stack: Stack) -> None:
    context = unverified()
    connections = []
    for _ in range(60):
        plain = socket.create_connection(("127.0.0.1", stack.https_port), timeout=20)
        connections.append(context.wrap_socket(plain, server_hostname=DOMAIN))
        connections[-1].send(b"POST /api/v1/todos HTTP/1.1\r\nHost: example.com\r\nContent-Length: 9\r\n\r\n")

    statuses = [read_to_the_end(connection)[9:12] for connection in connections[::-1]]

    assert statuses.count(b"429") == 10


def test_denied_address_is_refused_after_a_reload(stack: Stack, manual: dict[str, list[str]]) -> None:
    deny = stack.project.path / "deploy" / "nginx" / "deny.conf"
    before = deny.read_text(encoding="utf-8")
    try:
        deny.write_text("deny all;\n", encoding="utf-8")
        stack.follow(manual["Update, roll back, scale"][4])
        wait_until(
            lambda: stack.request("GET", "/health").status_code == 403,
            RECOVERY_SECONDS,
            lambda: "the address is refused",
        )
    finally:
        deny.write_text(before, encoding="utf-8")
        stack.execute("proxy", "nginx", "-s", "reload")
    wait_until(stack.answers, RECOVERY_SECONDS, lambda: "the address is served again")
