"""Requests and answers through nginx."""

import json
import re
import socket
import ssl

import httpx2
import pytest

from tests.support.containers import DOMAIN, PAGE_ORIGIN, SECURITY_HEADERS, Stack, unverified

# The codes that the application uses for these statuses.
PROBLEM_CODES = {
    400: "bad-request",
    405: "method-not-allowed",
    413: "content-too-large",
    414: "uri-too-long",
    416: "range-not-satisfiable",
    431: "request-header-fields-too-large",
    501: "not-implemented",
    505: "http-version-not-supported",
}


def test_person_signs_up_signs_in_and_keeps_todos(stack: Stack) -> None:
    headers = stack.sign_up()
    created = stack.add_todo(headers, "Write a test")
    path = created.headers["location"]

    changed = stack.request("PATCH", path, json={"completed": True}, headers=headers)
    read = stack.request("GET", path, headers=headers)
    deleted = stack.request("DELETE", path, headers=headers)

    assert created.status_code == 201
    assert changed.json()["completed"] is True
    assert read.json() == changed.json()
    assert deleted.status_code == 204
    assert stack.request("GET", path, headers=headers).status_code == 404


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_is_modern_and_speaks_http_2(stack: Stack, version: ssl.TLSVersion) -> None:
    context = unverified()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])

    with (
        socket.create_connection(("127.0.0.1", stack.https_port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=DOMAIN) as connection,
    ):
        assert connection.version() == version.name.replace("_", ".")
        assert connection.selected_alpn_protocol() == "h2"


def test_plain_http_redirects_pages_and_refuses_api_calls(stack: Stack) -> None:
    plain = f"http://127.0.0.1:{stack.http_port}"
    redirected = stack.client.get(f"{plain}/todos?page=2", headers={"Host": DOMAIN})
    refused = stack.client.get(f"{plain}/api/v1/todos?limit=1", headers={"Host": DOMAIN})

    assert redirected.status_code == 308
    assert redirected.headers["location"] == f"https://{DOMAIN}:{stack.https_port}/todos?page=2"
    assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
    assert "Use HTTPS." in refused.json()["detail"]


def test_unknown_host_is_refused(stack: Stack) -> None:
    plain = stack.client.get(f"http://127.0.0.1:{stack.http_port}/", headers={"Host": "evil.example"})
    other = stack.request("GET", "/health", headers={"Host": "evil.example"})

    with pytest.raises(httpx2.ConnectError), httpx2.Client(verify=unverified()) as client:
        stack.request("GET", "/health", sni="evil.example", client=client)

    assert (plain.status_code, other.status_code) == (421, 421)


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/api/v1/users/me", 401), ("/metrics", 404), ("/static/favicon.svg", 200)]
)
def test_every_response_has_each_security_header_once(stack: Stack, path: str, status: int) -> None:
    response = stack.request("GET", path)

    assert response.status_code == status
    assert {name: response.headers.get_list(name) for name in SECURITY_HEADERS} == {
        n: [v] for n, v in SECURITY_HEADERS.items()
    }
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert "geolocation=()" in response.headers["permissions-policy"]
    assert response.headers["server"] == "nginx"


@pytest.mark.parametrize(
    "path",
    [
        *("/metrics", "/health/live", "/health/ready", "/health/", "/docs", "/openapi.json"),
        *("/metrics/", "/metrics%2f", "/metrics.json", "//metrics", "/./metrics/.", "/x/..%2fmetrics", "/%6detrics"),
        *("/health%2fready", "/health//ready"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_internal_routes_are_not_found(stack: Stack, method: str, path: str) -> None:
    assert f" {404} " in send_raw(stack, f"{method} {path} HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("path", ["/metrics%0a", "/health/%0a", "/health%2Flive%0a", "/openapi.json%0d", "/%7f"])
def test_control_characters_in_a_path_are_refused(stack: Stack, path: str) -> None:
    assert f" {400} " in send_raw(stack, f"GET {path} HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n")


def send_raw(stack: Stack, request: str) -> str:
    """Send raw bytes, which an HTTP client would correct, and return the response."""
    with (
        socket.create_connection(("127.0.0.1", stack.https_port), timeout=30) as plain,
        unverified().wrap_socket(plain, server_hostname=DOMAIN) as connection,
    ):
        connection.sendall(request.encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer.decode()


@pytest.mark.parametrize("path", ["/api/v1/x.png", "/api/v1/x.html"])
@pytest.mark.parametrize(
    ("status", "start", "header"),
    [
        (400, "NONSENSE", "X-A: 1"),
        (400, "GET {path} HTTP/1.1", "Host: another.example.com"),
        (405, "TRACE {path} HTTP/1.1", "X-A: 1"),
        (405, "POST /static/favicon.svg HTTP/1.1", "Content-Length: 0"),
        (413, "POST {path} HTTP/1.1", "Content-Length: 99999999"),
        (414, "GET {path}?" + "a" * 9000 + " HTTP/1.1", "X-A: 1"),
        (416, "GET /static/favicon.svg HTTP/1.1", "Range: bytes=999999-"),
        (431, "GET {path} HTTP/1.1", "X-A: " + "a" * 9000),
        (501, "POST {path} HTTP/1.1", "Transfer-Encoding: gzip"),
        (505, "GET {path} HTTP/3.0", "X-A: 1"),
    ],
)
def test_nginx_refuses_with_problem_documents_for_any_file_extension(
    stack: Stack, path: str, status: int, start: str, header: str
) -> None:
    lines = (start.replace("{path}", path), f"Host: {DOMAIN}", f"Origin: {PAGE_ORIGIN}", "Connection: close", header)

    head, _, body = send_raw(stack, "\r\n".join(lines) + "\r\n\r\n").partition("\r\n\r\n")

    assert head.startswith(f"HTTP/1.1 {status} ")
    assert re.findall("(?im)^content-type: *(.*?)\r?$", head) == ["application/problem+json"]
    assert re.findall("(?im)^x-content-type-options: *(.*?)\r?$", head) == ["nosniff"]
    problem = json.loads(body)
    assert problem.keys() == {"type", "code", "title", "status", "detail", "instance"}
    assert (problem["status"], problem["code"]) == (status, PROBLEM_CODES[status])
    assert problem["type"] == f"urn:problem-type:{stack.project.answers['project_slug']}:{problem['code']}"
    if status in {405, 413, 416}:
        assert re.findall("(?im)^access-control-allow-origin: *(.*?)\r?$", head) == [PAGE_ORIGIN]
    assert len(re.findall("(?im)^allow:", head)) == (1 if status == 405 else 0)


def test_redirects_of_the_application_keep_the_port(stack: Stack) -> None:
    assert stack.request("GET", "/api/v1/users/").headers["location"] == "/api/v1/users"


def test_head_and_options_come_through_the_proxy(stack: Stack, user: dict[str, str]) -> None:
    for path in ("/health", "/api/v1/users/me", "/robots.txt", "/static/favicon.svg"):
        got, head = (stack.request(method, path, headers=user) for method in ("GET", "HEAD"))

        assert (head.status_code, head.content) == (got.status_code, b"") == (200, b"")
        assert head.headers["content-type"] == got.headers["content-type"]
    for path in ("/api/v1/users/me", "/static/favicon.svg"):
        assert stack.request("OPTIONS", path).status_code == 204
        assert "HEAD" in stack.request("OPTIONS", path).headers["allow"]


def test_static_files_are_cached_for_a_year_and_read_only(stack: Stack) -> None:
    response = stack.request("GET", "/static/favicon.svg")

    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert response.headers["content-type"].startswith("image/svg+xml")
    assert stack.request("POST", "/static/favicon.svg").status_code == 405
    assert stack.request("GET", "/static/../http.conf").status_code == 404
    assert stack.request("GET", "/robots.txt").text.startswith("User-agent")


def test_public_responses_are_cached_and_private_ones_are_not(stack: Stack, user: dict[str, str]) -> None:
    stranger = stack.sign_up()
    stack.add_todo(user, "mine alone")

    public = [stack.request("GET", "/health").headers["x-cache-status"] for _ in range(5)]
    known = stack.request("GET", "/health", headers=user).headers["x-cache-status"]
    lists = [stack.request("GET", "/api/v1/todos", headers=headers) for headers in (user, stranger)]

    assert "HIT" in public
    assert known == "BYPASS"
    assert [len(response.json()["items"]) > 0 for response in lists] == [True, False]
    assert "x-cache-status" not in lists[0].headers
    assert stack.request("GET", "/api/v1/todos").status_code == 401


def test_connections_to_the_application_are_kept_open(stack: Stack, user: dict[str, str]) -> None:
    with httpx2.Client(verify=unverified()) as client:
        before = count_connections(stack)
        for _ in range(30):
            stack.request("GET", "/api/v1/users/me", headers=user, client=client)

        opened = count_connections(stack) - before

    # The number includes the connections of the health probe.
    assert opened <= 5


def count_connections(stack: Stack) -> int:
    """Return the number of connections that the application has accepted so far."""
    names, numbers = re.findall(r"(?m)^Tcp: (.*)", stack.execute("app", "cat", "/proc/net/snmp"))
    return int(dict(zip(names.split(), numbers.split(), strict=True))["PassiveOpens"])
