"""Each baked project's containers, built and used as they are: through nginx, scaled, killed, updated and restored."""

import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.support.browsers import Person, open_chromium
from tests.support.containers import (
    DOMAIN,
    PASSWORD,
    RECOVERY_SECONDS,
    TAG,
    Stack,
    has_engine,
    load,
    read_manual,
    read_manual_text,
    run_docker,
    unverified,
)
from tests.support.programs import UV
from tests.support.projects import Bake, BakedProject
from tests.support.serving import wait_until
from tests.support.stored_files import READ_FILE, STORE_FILE

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    # With the first build.
    pytest.mark.timeout(600),
    pytest.mark.skipif(not has_engine(), reason="no container engine: `docker info` fails"),
]

HEADERS = {
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}

OF_A_BROWSER = {"Accept": "text/html,*/*;q=0.8"}

ADMIN = "you@example.com"
# For what has ended in no time: a one-shot, whose container is still there.
HARDENED = ("proxy", "app", "backup", "db", "migrate")
RUNNING = HARDENED[:-1]


@pytest.fixture(scope="module")
def origin(bake: Bake) -> BakedProject:
    """What a team keeps in git, and every deployment clones."""
    project = bake(project_slug=f"pg-{uuid4().hex[:8]}")
    project.run(["git", "init", "--quiet", "--initial-branch=main"])
    commit(project, "First release")
    return project


@pytest.fixture(scope="module")
def manual(origin: BakedProject) -> dict[str, list[str]]:
    """The commands of docs/operations.md, by heading; test_every_command_of_the_manual_is_run reads the uses."""
    return read_manual(origin)


def commit(project: BakedProject, message: str) -> None:
    project.run(["git", "add", "--all"])
    project.run(["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", message])


@pytest.fixture(scope="module")
def stack(
    origin: BakedProject, manual: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """PostgreSQL, in production, with one instance: brought up by the manual's first deployment."""
    folder = tmp_path_factory.mktemp("server")
    stack = Stack(BakedProject(folder / origin.path.name, origin.answers))
    url = f"https://git.example.com/{origin.path.name}.git"
    stack.variables |= {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{origin.path}.insteadOf",
        "GIT_CONFIG_VALUE_0": url,
    }
    (deploy,) = manual["First deployment"]
    password = f"{PASSWORD}\n"
    try:
        # As hardened machines have it: whatever the containers need to read they have to be let.
        stack.follow(f"umask 077\n{deploy}", folder, {"Password: ": password, "Repeat for confirmation: ": password})
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="module", params=["supervisor", "circus"])
def lite(bake: Bake, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """SQLite and the pages, in production, with one instance, under the process managers that `stack` does without."""
    answers = {"database": "sqlite", "web_pages": "yes", "process_manager": request.param}
    stack = Stack(bake(project_slug=f"lite-{uuid4().hex[:8]}", **answers))
    try:
        stack.up("--build")
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="module")
def account(stack: Stack) -> str:
    return stack.create_account()


@pytest.fixture
def user(stack: Stack, account: str) -> dict[str, str]:
    return stack.log_in(account)


@pytest.fixture
def three(stack: Stack, manual: dict[str, list[str]]) -> Iterator[Stack]:
    stack.follow(manual["Update, roll back, scale"][3])
    wait_until(lambda: len(stack.serving()) == 3, RECOVERY_SECONDS, lambda: "nginx serves from three instances")
    yield stack
    stack.up("--scale", "app=1", "--no-recreate")
    wait_until(lambda: len(stack.serving()) == 1, RECOVERY_SECONDS, lambda: "nginx serves from one instance")


# The image


def test_image_has_what_it_needs_and_nothing_else(stack: Stack) -> None:
    image = stack.inspect(stack.image)
    config = image["Config"]
    look = "ls -A /service; which gcc cc make uv pg_dump; find /opt/venv /service/app -name '*.py' | wc -l; "
    look += "find /opt/venv /service/app -name '*.pyc' | wc -l; env"

    found = run_docker("run", "--rm", "--network=none", stack.image, "sh", "-c", look)

    files = set(found.split("env", 1)[0].split()) & {".env", "secrets", "tests", "Dockerfile", "compose.yaml", "uv"}
    sources, compiled = (int(line) for line in found.splitlines() if line.isdigit())
    assert not files
    assert "/gcc" not in found
    assert "/make" not in found
    assert "/pg_dump" not in found
    assert compiled > 0.95 * sources
    # It sets what the memory of the workers needs.
    assert config["Cmd"] == ["./start.sh"]
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "python"]
    assert config["Labels"]["org.opencontainers.image.title"] == stack.project.path.name
    assert config["Labels"]["org.opencontainers.image.version"] == TAG
    assert image["Size"] < 300_000_000


def test_no_secret_is_in_a_layer_or_in_the_environment(stack: Stack, tmp_path: Path) -> None:
    secrets = {stack.project.read(name) for name in stack.project.secrets - {".env"}}
    containers = run_docker("inspect", *(name for service in HARDENED for name in list_all(stack, service)))
    run_docker("save", "--output", str(tmp_path / "image.tar"), stack.image)

    assert len(secrets) == 4
    assert not [secret for secret in secrets if secret in containers]
    assert not [secret for secret in secrets if secret in run_docker("history", "--no-trunc", stack.image)]
    with tarfile.open(tmp_path / "image.tar") as image:
        found = [name for name, content in read_layers(image) if any(secret.encode() in content for secret in secrets)]
    assert not found


def read_layers(image: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Every file of every layer, also of those that a later layer hides."""
    for member in image:
        blob = image.extractfile(member)
        if blob is None:
            continue
        is_description = blob.read(1) in {b"{", b"[", b""}
        blob.seek(0)
        if is_description:
            yield member.name, blob.read()
            continue
        with tarfile.open(fileobj=blob) as layer:
            yield from (
                (file.name, content.read()) for file in layer if file.isreg() and (content := layer.extractfile(file))
            )


def list_all(stack: Stack, service: str) -> list[str]:
    """List the containers of a service, also those that have ended."""
    return stack.compose("ps", "--all", "--quiet", service).split()


@pytest.mark.parametrize("service", RUNNING)
def test_containers_may_do_nothing_beyond_their_work(stack: Stack, service: str) -> None:
    status = stack.execute(service, "cat", "/proc/1/status")

    # Also what a program with more rights than its caller would get.
    assert re.search(r"(?m)^CapBnd:\s+0+$", status)
    assert re.search(r"(?m)^NoNewPrivs:\s+1$", status)
    assert not re.search(r"(?m)^Uid:\s+0", status)
    assert "Read-only file system" in stack.execute(service, "touch", "/etc/x", check=False)


@pytest.mark.parametrize("service", HARDENED)
def test_containers_are_confined_and_limited(stack: Stack, service: str) -> None:
    host = stack.inspect(list_all(stack, service)[0])["HostConfig"]
    log = host["LogConfig"]

    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert not host["Privileged"]
    assert 0 < host["Memory"] <= 1024**3
    assert 0 < host["PidsLimit"] <= 256
    # What may be written is in memory, and bounded.
    assert host["Tmpfs"]
    assert all("size=" in options for options in host["Tmpfs"].values())
    assert (log["Type"], log["Config"]) == ("json-file", {"max-size": "10m", "max-file": "5"})
    assert host["RestartPolicy"]["Name"] == ("no" if service == "migrate" else "unless-stopped")


def test_settings_of_the_application_stand_in_a_file(stack: Stack) -> None:
    file = stack.project.path / "secrets" / "env"
    secret = r'a${HOME}b$HOME$$ "c" \d #e'
    file.write_text(f"REGISTRATION_OPEN=false\nSMTP_PASSWORD='{secret}'\n", encoding="utf-8")
    try:
        services = json.loads(stack.compose("config", "--format", "json"))["services"]
        output = stack.compose("run", "--rm", "--no-deps", "app", "env")
    finally:
        file.unlink()

    assert {"REGISTRATION_OPEN=false", f"SMTP_PASSWORD={secret}"} <= {*output.splitlines()}
    # All that use the database have to find the same one.
    told = {name for name, service in services.items() if "REGISTRATION_OPEN" in (service.get("environment") or {})}
    assert told == {"app", "migrate", "backup"}


def test_only_the_proxy_is_published(stack: Stack) -> None:
    published = {
        service: stack.inspect(container)["NetworkSettings"]["Ports"]
        for service in RUNNING
        for container in stack.list_containers(service)
    }

    assert {service for service, ports in published.items() if any(ports.values())} == {"proxy"}
    # Over IPv6, which its network does not have, each client would come from the address of that network's gateway.
    proxy = stack.inspect(stack.list_containers("proxy")[0])
    bindings = [binding for port in proxy["HostConfig"]["PortBindings"].values() for binding in port]
    assert [binding["HostIp"].count(".") for binding in bindings] == [3, 3]


def test_nobody_but_the_proxy_shares_a_network_with_the_application_and_the_way_out(stack: Stack) -> None:
    members: dict[str, set[str]] = {}
    for service in HARDENED:
        for network in stack.inspect(list_all(stack, service)[0])["NetworkSettings"]["Networks"]:
            members.setdefault(network.removeprefix(f"{stack.project.path.name}_"), set()).add(service)
    is_internal = {name: describe_network(stack, name)["Internal"] for name in members}

    assert members == {"front": {"proxy", "app"}, "back": {"app", "migrate", "backup", "db"}}
    assert is_internal == {"front": False, "back": True}


def describe_network(stack: Stack, name: str) -> Any:  # noqa: ANN401  # JSON, of a form that depends on the engine
    return json.loads(run_docker("network", "inspect", f"{stack.project.path.name}_{name}"))[0]


def address_in(stack: Stack, service: str, network: str) -> str:
    (container,) = stack.list_containers(service)
    networks = stack.inspect(container)["NetworkSettings"]["Networks"]
    address: str = networks[f"{stack.project.path.name}_{network}"]["IPAddress"]
    return address


def test_database_is_out_of_reach_for_the_proxy_and_has_no_way_out(stack: Stack) -> None:
    url = f"telnet://{address_in(stack, 'db', 'back')}:5432"

    named = stack.execute("proxy", "sh", "-c", "getent hosts db || echo unknown")
    reached = stack.execute("proxy", "sh", "-c", f"curl --silent --max-time 2 {url} < /dev/null; echo =$?")
    routes = stack.execute("db", "cat", "/proc/net/route")

    assert "unknown" in named
    # It does not answer at all, or there is no route to it.
    assert reached.strip() in {"=28", "=7"}
    assert not re.search(r"(?m)^\w+\s+00000000\s", routes)


def test_application_is_no_superuser_of_its_database(stack: Stack, user: dict[str, str]) -> None:
    rights = "rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
    query = "SELECT {} FROM pg_roles JOIN pg_stat_activity ON rolname = usename WHERE client_addr IS NOT NULL"
    stack.request("GET", "/api/v1/todos", headers=user)

    found = stack.execute("db", "psql", "-U", "postgres", "-Atc", query.format(rights))

    assert set(found.split()) == {"f|f|f|f|f"}


def test_application_does_not_own_its_tables_and_has_no_password_of_the_owner(stack: Stack) -> None:
    owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
    as_service = ["db", "psql", "-U", "service", "-c"]
    forget = ["TRUNCATE audit_events", "ALTER TABLE audit_events DISABLE TRIGGER ALL", "SET ROLE owner"]

    owner = stack.execute("db", "psql", "-U", "postgres", "-Atc", owners, "service").split()
    secrets = stack.execute("app", "ls", "/run/secrets").split()
    refusals = [stack.execute(*as_service, statement, check=False) for statement in forget]

    assert owner == ["owner"]
    assert secrets == ["database_password", "secret_key"]
    assert "OWNER" not in stack.execute("app", "env")
    for refusal, reason in zip(refusals, ("permission denied", "must be owner", "permission denied"), strict=True):
        assert reason in refusal


def test_proxy_stops_after_the_application_and_that_after_its_workers(stack: Stack) -> None:
    config = json.loads(stack.compose("config", "--format", "json"))["services"]["app"]
    proxy, app, db = (
        stack.inspect(stack.list_containers(service)[0])["Config"]["StopTimeout"] for service in ("proxy", "app", "db")
    )

    assert proxy > app > int(config["environment"]["GRACEFUL_TIMEOUT_SECONDS"])
    # It ends its connections and writes down what it has.
    assert db >= 60


def test_containers_start_when_what_they_need_is_ready(stack: Stack) -> None:
    services = json.loads(stack.compose("config", "--format", "json"))["services"]

    needed = {
        service: {name: need["condition"] for name, need in services[service].get("depends_on", {}).items()}
        for service in HARDENED
    }

    assert needed == {
        "proxy": {"app": "service_healthy"},
        "app": {"migrate": "service_completed_successfully"},
        "backup": {"migrate": "service_completed_successfully"},
        "migrate": {"db": "service_healthy"},
        "db": {},
    }
    assert {service for service in services if "healthcheck" in services[service]} == {"proxy", "backup", "db"}


def test_application_does_not_start_without_its_schema(stack: Stack) -> None:
    other = ["--project-name", f"{stack.project.path.name}-gate"]
    try:
        # What nobody may serve in production: the migration ends with an error.
        output = stack.compose(*other, "up", "--detach", "--no-build", "app", check=False, DOMAIN="*")
        states = stack.compose(*other, "ps", "--all", "--format", "{{.Service}} {{.State}}", "app", "db")
    finally:
        stack.compose(*other, "down", "--volumes", "--timeout", "5")

    assert "didn't complete successfully" in output
    assert set(states.splitlines()) == {"db running", "app created"}


# Through nginx


def test_person_signs_up_logs_in_and_keeps_todos(stack: Stack) -> None:
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


def test_http_is_redirected_and_calls_of_the_api_are_refused(stack: Stack) -> None:
    plain = f"http://127.0.0.1:{stack.http_port}"
    redirected = stack.client.get(f"{plain}/todos?page=2", headers={"Host": DOMAIN})
    refused = stack.client.get(f"{plain}/api/v1/todos?limit=1", headers={"Host": DOMAIN})

    assert redirected.status_code == 308
    assert redirected.headers["location"] == f"https://{DOMAIN}:{stack.https_port}/todos?page=2"
    assert (refused.status_code, refused.headers["content-type"]) == (403, "application/problem+json")
    assert "Use https." in refused.json()["detail"]


def test_unknown_host_is_refused(stack: Stack) -> None:
    plain = stack.client.get(f"http://127.0.0.1:{stack.http_port}/", headers={"Host": "evil.example"})
    other = stack.request("GET", "/health", headers={"Host": "evil.example"})

    with pytest.raises(httpx2.ConnectError), httpx2.Client(verify=unverified()) as client:
        stack.request("GET", "/health", sni="evil.example", client=client)

    assert (plain.status_code, other.status_code) == (421, 421)


@pytest.mark.parametrize(
    ("path", "status"), [("/health", 200), ("/api/v1/users/me", 401), ("/metrics", 404), ("/static/favicon.svg", 200)]
)
def test_every_answer_has_the_security_headers_once(stack: Stack, path: str, status: int) -> None:
    response = stack.request("GET", path)

    assert response.status_code == status
    assert {name: response.headers.get_list(name) for name in HEADERS} == {n: [v] for n, v in HEADERS.items()}
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
def test_what_is_not_for_the_public_is_not_found(stack: Stack, method: str, path: str) -> None:
    assert f" {404} " in speak(stack, f"{method} {path} HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n")


@pytest.mark.parametrize("path", ["/metrics%0a", "/health/%0a", "/health%2Flive%0a", "/openapi.json%0d", "/%7f"])
def test_control_characters_in_a_path_are_refused(stack: Stack, path: str) -> None:
    assert f" {400} " in speak(stack, f"GET {path} HTTP/1.1\r\nHost: {DOMAIN}\r\nConnection: close\r\n\r\n")


def speak(stack: Stack, request: str) -> str:
    """Send a request as it stands, which clients would mend, and return the answer."""
    with (
        socket.create_connection(("127.0.0.1", stack.https_port), timeout=30) as plain,
        unverified().wrap_socket(plain, server_hostname=DOMAIN) as connection,
    ):
        connection.sendall(request.encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer.decode()


PAGE_ORIGIN = "https://pages.example.com"


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
def test_refusals_of_nginx_are_problems_whatever_the_path_ends_in(
    stack: Stack, path: str, status: int, start: str, header: str
) -> None:
    lines = (start.replace("{path}", path), f"Host: {DOMAIN}", f"Origin: {PAGE_ORIGIN}", "Connection: close", header)

    head, _, body = speak(stack, "\r\n".join(lines) + "\r\n\r\n").partition("\r\n\r\n")

    assert head.startswith(f"HTTP/1.1 {status} ")
    assert re.findall("(?im)^content-type: *(.*?)\r?$", head) == ["application/problem+json"]
    assert re.findall("(?im)^x-content-type-options: *(.*?)\r?$", head) == ["nosniff"]
    assert json.loads(body).keys() == {"type", "title", "status", "detail"}
    assert json.loads(body)["status"] == status
    if status in {405, 413, 416}:
        assert re.findall("(?im)^access-control-allow-origin: *(.*?)\r?$", head) == [PAGE_ORIGIN]
    assert len(re.findall("(?im)^allow:", head)) == (1 if status == 405 else 0)


def test_own_redirects_keep_the_port(stack: Stack) -> None:
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


def test_public_answer_is_cached_and_one_persons_never(stack: Stack, user: dict[str, str]) -> None:
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


def test_body_that_is_too_large_is_refused_before_the_application(stack: Stack, user: dict[str, str]) -> None:
    fits = stack.request("POST", "/api/v1/todos", content=b"x" * 1024 * 1024, headers=user)
    refused = stack.request("POST", "/api/v1/todos", content=b"x" * (1024 * 1024 + 1), headers=user)

    assert fits.status_code == 415
    assert refused.status_code == 413
    assert refused.headers["content-type"] == "application/problem+json"
    assert "x-request-id" not in refused.headers
    assert "access-control-allow-origin" not in refused.headers


def test_location_for_uploads_has_a_limit_of_its_own(stack: Stack) -> None:
    # No route: the application's own limit answers what nginx lets through.
    path = f"/api/v1/{uuid4().hex}/file"
    passed_on = stack.request("PUT", path, content=b"x" * 10 * 1024 * 1024)
    refused = stack.request("PUT", path, content=b"x" * (11 * 1024 * 1024 + 1))

    assert [passed_on.status_code, refused.status_code] == [413, 413]
    assert "x-request-id" in passed_on.headers
    assert "x-request-id" not in refused.headers


FORGED = {name: "6.6.6.6" for name in ("X-Forwarded-For", "X-Real-IP")} | {"Forwarded": "for=6.6.6.6"}


def test_forged_address_reaches_nobody(stack: Stack) -> None:
    path = f"/api/v1/{uuid4().hex}"

    stack.request("GET", path, headers=FORGED)

    seen = seen_by_the_application(stack, path)
    (noted,) = find_in_log(stack, "proxy", rf'"client":"([^"]+)".*"path":"{path}"')
    assert "6.6.6.6" not in stack.compose("logs", "--no-log-prefix", "app", "proxy")
    assert seen == noted != address_in(stack, "proxy", "front")


def seen_by_the_application(stack: Stack, path: str) -> str:
    """The client's address, as it stands in the application's log."""
    (client,) = find_in_log(stack, "app", rf'"path": "{path}".*"client": "([^"]+)"')
    return client


def find_in_log(stack: Stack, service: str, pattern: str) -> list[str]:
    """Return what matches, once something does: a line may come after the answer that it tells of."""
    found: list[str] = []

    def is_there() -> bool:
        found[:] = re.findall(pattern, stack.compose("logs", "--no-log-prefix", service))
        return bool(found)

    wait_until(is_there, RECOVERY_SECONDS, lambda: f"{service} logs {pattern}")
    return found


def ask_past_the_proxy(url: str) -> list[str]:
    headers = FORGED | {"Host": DOMAIN}
    code = f"import urllib.request as u; u.urlopen(u.Request({url!r}, headers={headers}), timeout=30)"
    return ["python", "-c", code]


def test_application_believes_no_other_container(stack: Stack) -> None:
    path = f"/api/v1/{uuid4().hex}"

    output = stack.execute("backup", *ask_past_the_proxy(f"http://app:8000{path}"), check=False)

    assert "404" in output
    assert seen_by_the_application(stack, path) == address_in(stack, "backup", "back")


def test_application_does_not_believe_the_machines_own_programs(stack: Stack) -> None:
    path = f"/api/v1/{uuid4().hex}"
    command = ask_past_the_proxy(f"http://{address_in(stack, 'app', 'front')}:8000{path}")

    output = run_docker("run", "--rm", "--network=host", stack.image, *command, check=False)

    assert "404" in output
    assert seen_by_the_application(stack, path) == describe_network(stack, "front")["IPAM"]["Config"][0]["Gateway"]


def test_proxy_has_to_be_named_where_no_network_has_a_way_out(stack: Stack) -> None:
    output = run_docker(
        *("run", "--rm", "--network=none", stack.image, "python", "-I", "trust_proxy.py", "echo", "started"),
        check=False,
    )

    assert output == "No network has a way out, so none is known to be the proxy's: set FORWARDED_ALLOW_IPS.\n"


def test_proxy_that_comes_back_elsewhere_is_believed(stack: Stack, manual: dict[str, list[str]]) -> None:
    before = address_in(stack, "proxy", "front")
    path = f"/api/v1/{uuid4().hex}"
    name = f"{stack.project.path.name}_front"
    stack.compose("rm", "--stop", "--force", "proxy")
    squatter = run_docker("run", "--detach", f"--network={name}", stack.image, "sleep", "60").strip()
    try:
        # What a registry has beyond this machine's images is the registry's affair.
        stack.follow(manual["Update, roll back, scale"][5].replace("docker compose pull proxy\n", ""))
        stack.wait_until_it_answers()
        stack.request("GET", path)
    finally:
        run_docker("rm", "--force", squatter)

    assert address_in(stack, "proxy", "front") != before
    assert seen_by_the_application(stack, path) != address_in(stack, "proxy", "front")


def test_connections_to_the_application_are_kept_open(stack: Stack, user: dict[str, str]) -> None:
    with httpx2.Client(verify=unverified()) as client:
        before = count_connections(stack)
        for _ in range(30):
            stack.request("GET", "/api/v1/users/me", headers=user, client=client)

        opened = count_connections(stack) - before

    # The probe's among them.
    assert opened <= 5


def count_connections(stack: Stack) -> int:
    """All that the application has accepted so far."""
    names, numbers = re.findall(r"(?m)^Tcp: (.*)", stack.execute("app", "cat", "/proc/net/snmp"))
    return int(dict(zip(names.split(), numbers.split(), strict=True))["PassiveOpens"])


# More than nginx lets through, and fewer than it allows connections.
AT_ONCE = 30
ALSO_HASHING = (
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


def test_sign_ins_are_limited_and_the_rest_goes_on(stack: Stack, user: dict[str, str]) -> None:
    form = {"grant_type": "password", "password": "wrong"}

    def sign_in(_number: int) -> httpx2.Response:
        data, headers = form | {"username": f"{uuid4().hex}@example.com"}, {"Origin": PAGE_ORIGIN}
        return stack.request("POST", "/api/v1/auth/token", data=data, headers=headers)

    # At once: nginx lets one more through each second.
    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(sign_in, range(AT_ONCE)))
    # Several each, for the same reason.
    as_costly = {path: [stack.request("POST", f"/api/v1/{path}", json={}) for _ in range(6)] for path in ALSO_HASHING}

    # By nginx: the application, which gives each answer an id, counts what one account is tried.
    refused = [answer for answer in answers if answer.status_code == 429 and "x-request-id" not in answer.headers]
    assert len(refused) >= 10
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].headers["content-type"] == "application/problem+json"
    assert refused[0].headers["access-control-allow-origin"] == PAGE_ORIGIN
    assert refused[0].headers["access-control-expose-headers"] == "Retry-After"
    for path, responses in as_costly.items():
        assert [r for r in responses if r.status_code == 429 and "x-request-id" not in r.headers], path
    assert stack.request("GET", "/api/v1/todos", headers=user).status_code == 200


def test_slow_clients_are_closed_and_stop_nobody(stack: Stack, user: dict[str, str]) -> None:
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


def test_given_certificate_and_its_successor_are_used_without_a_restart(
    stack: Stack, manual: dict[str, list[str]]
) -> None:
    (replace,) = manual["Certificate"]
    folder = stack.project.path
    try:
        for _ in range(2):
            given = make_certificate(folder)
            stack.follow(replace)
            wait_for_certificate(stack, given)

        # What is not a pair is not used.
        make_certificate(folder)
        stack.follow("cp fullchain.pem secrets/tls/")
        wait_for_the_next_look(stack)
        assert served_certificate(stack) == given
    finally:
        for name in ("privkey.pem", "fullchain.pem", "secrets/tls/privkey.pem", "secrets/tls/fullchain.pem"):
            (folder / name).unlink(missing_ok=True)


def wait_for_certificate(stack: Stack, given: bytes) -> None:
    wait_until(lambda: served_certificate(stack) == given, RECOVERY_SECONDS, lambda: "the given certificate is served")


def wait_for_the_next_look(stack: Stack) -> None:
    """Wait until proxy.sh has looked for something new, from beginning to end."""
    looks: set[str] = set()

    def has_looked() -> bool:
        looks.add(stack.execute("proxy", "stat", "--format=%y", "/run/nginx/heartbeat"))
        return len(looks) > 2

    wait_until(has_looked, RECOVERY_SECONDS, lambda: "two more looks")


def make_certificate(folder: Path) -> bytes:
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={DOMAIN}", "-days", "1"]
    files = ["-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")]
    subprocess.run([*make, *files], check=True, capture_output=True, timeout=60)
    return ssl.PEM_cert_to_DER_cert((folder / "fullchain.pem").read_text(encoding="utf-8"))


def served_certificate(stack: Stack) -> bytes | None:
    with (
        socket.create_connection(("127.0.0.1", stack.https_port), timeout=10) as plain,
        unverified().wrap_socket(plain, server_hostname=DOMAIN) as connection,
    ):
        return connection.getpeercert(binary_form=True)


# Several instances


def test_load_is_balanced_and_survives_the_crash_of_an_instance(three: Stack, user: dict[str, str]) -> None:
    served = {address.split(":")[0] for address in three.serving()}
    paths = {f"/api/v1/{uuid4().hex}" for _ in range(30)}
    for path in paths:
        three.request("GET", path)
    wait_until(lambda: paths <= read_upstreams(three).keys(), RECOVERY_SECONDS, lambda: "nginx logs all requests")
    used = {upstream for path, upstream in read_upstreams(three).items() if path in paths}

    three.kill(three.list_containers("app")[0])
    statuses = [three.request("GET", "/api/v1/todos", headers=user).status_code for _ in range(60)]

    assert used == served
    assert set(statuses) == {200}
    wait_until(lambda: len(three.serving()) == 3, RECOVERY_SECONDS, lambda: "the instance is back")


def read_upstreams(stack: Stack) -> dict[str, str]:
    """The address of the instance that each path was asked of, as nginx logs it."""
    logs = stack.compose("logs", "--no-log-prefix", "proxy")
    return dict(re.findall(r'"path":"(/api/v1/[0-9a-f]{32})".*"upstream":"([0-9.]+):', logs))


MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("notes", sa.Column("id", sa.Integer(), primary_key=True))


def downgrade() -> None:
    op.drop_table("notes")
"""


def test_update_and_the_way_back_fail_no_request(
    three: Stack, origin: BakedProject, user: dict[str, str], manual: dict[str, list[str]]
) -> None:
    update, back, downgrade = manual["Update, roll back, scale"][:3]
    before = set(three.list_containers("app"))
    pyproject = origin.path / "pyproject.toml"
    pyproject.write_text(origin.read("pyproject.toml").replace('"0.1.0"', '"0.2.0"', 1), encoding="utf-8")
    migrations = origin.path / "migrations" / "versions"
    head = max(path.name for path in migrations.glob("*.py")).partition("_")[0]
    (migrations / "9999_notes.py").write_text(MIGRATION.format(head=head), encoding="utf-8")
    commit(origin, "Second release")

    with load(three, user) as clients:
        clients.wait_for_answers(20)
        three.follow(update)
        updated = set(three.list_containers("app"))
        wait_for_version(three, "0.2.0")
        three.follow(f"export TAG=1.4.0; {downgrade.replace('REVISION', head)}")
        three.follow(back)
        wait_for_version(three, "0.1.0")
        clients.wait_for_answers(20)

    restored = set(three.list_containers("app"))
    granted = int(three.execute("db", "psql", "-U", "postgres", "-Atc", "SHOW max_connections"))
    # Three workers with a pool of ten, as many as fit into the memory of one instance, and twice as many instances.
    assert granted > 2 * len(before) * 3 * 10
    assert clients.failures == []
    assert clients.acknowledged <= three.list_todos(user)
    assert (len(before), len(updated), len(restored), len(three.serving())) == (3, 3, 3, 3)
    assert not before & updated
    assert not updated & restored


def test_instance_that_nginx_never_asked_is_out_of_use_at_once(stack: Stack) -> None:
    """As one that never got ready: an update replaces it like any other."""
    drain = ("/bin/sh", "/etc/nginx/proxy/proxy.sh", "drain")
    started = time.monotonic()

    # A name on the network that is no instance's.
    stack.execute("proxy", *drain, "proxy")
    stack.execute("proxy", *drain)

    assert time.monotonic() - started < 20
    assert len(stack.serving()) == 1


def wait_for_version(stack: Stack, version: str) -> None:
    # The last answer is cached for a second.
    wait_until(
        lambda: stack.request("GET", "/health").json()["version"] == version,
        RECOVERY_SECONDS,
        lambda: f"{version} answers",
    )


# Secrets


def test_new_signing_key_logs_nobody_out_and_the_database_takes_a_new_password(
    stack: Stack, manual: dict[str, list[str]]
) -> None:
    new_key, new_password = manual["Secrets"]
    headers = stack.sign_up()
    before = {name: stack.project.read(f"secrets/{name}") for name in ("secret_key", "database_password")}

    stack.follow(new_key)
    kept = stack.request("GET", "/api/v1/users/me", headers=headers).status_code
    newer = stack.sign_up()
    stack.follow(new_password)

    assert kept == 200
    assert not [name for name, secret in before.items() if stack.project.read(f"secrets/{name}") == secret]
    # Without the fallback: who signed with the old key has expired by then.
    assert stack.request("GET", "/api/v1/users/me", headers=headers).status_code == 401
    assert stack.add_todo(newer).status_code == 201
    assert "Done: " in stack.execute("backup", "python", "-m", "app", "db", "backup", "/backups")


# Crashes


def list_workers(stack: Stack) -> set[int]:
    """The children of the container's first process."""
    return set(map(int, stack.execute("app", "cat", "/proc/1/task/1/children").split()))


def kill_a_worker(stack: Stack) -> None:
    stack.execute("app", "python", "-c", f"import os; os.kill({min(list_workers(stack))}, 9)")


def kill_the_application(stack: Stack) -> None:
    stack.kill(stack.list_containers("app")[0])


def kill_the_database(stack: Stack) -> None:
    stack.kill(stack.list_containers("db")[0])


@pytest.mark.parametrize("crash", [kill_a_worker, kill_the_application, kill_the_database])
def test_no_acknowledged_write_is_lost_in_a_crash(
    stack: Stack, user: dict[str, str], crash: Callable[[Stack], None]
) -> None:
    with load(stack, user) as clients:
        clients.wait_for_answers(20)
        crash(stack)
        clients.wait_for_answers(20)

    stack.wait_until_it_answers()
    assert clients.acknowledged <= stack.list_todos(user)


def test_readiness_tells_the_truth_about_the_database(stack: Stack, user: dict[str, str]) -> None:
    probe = ["python", "-I", "healthcheck.py"]
    ready = stack.execute("app", *probe)

    def is_refused() -> bool:
        answer = stack.request("GET", "/api/v1/todos", headers=user)
        # By the application, which gives each answer an id, and not by nginx.
        return answer.status_code == 503 and "x-request-id" in answer.headers

    # As the operator's wish: otherwise the engine brings it back before anybody could look.
    stack.compose("kill", "--signal", "KILL", "db")
    try:
        wait_until(
            lambda: "503" in stack.execute("app", *probe, check=False), RECOVERY_SECONDS, lambda: "it is not ready"
        )
        wait_until(is_refused, RECOVERY_SECONDS, lambda: "the application refuses")
    finally:
        stack.compose("start", "db")

    assert '"ready"' in ready
    wait_until(
        lambda: '"ready"' in stack.execute("app", *probe, check=False), RECOVERY_SECONDS, lambda: "it is ready again"
    )


def test_the_application_ends_its_requests_and_itself_when_told(stack: Stack) -> None:
    (container,) = stack.list_containers("app")
    started = time.monotonic()

    stack.compose("stop", "app")
    try:
        stopped = time.monotonic()
        state = stack.inspect(container)["State"]
        answer = stack.request("GET", "/api/v1/users/me")
    finally:
        stack.up()
        stack.wait_until_it_answers()

    assert stopped - started < 20
    assert state["ExitCode"] == 0
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


# Backups


def test_backup_brings_back_what_was_destroyed(stack: Stack, manual: dict[str, list[str]]) -> None:
    write, restore = manual["Backup and restore"]
    email = stack.create_account()
    headers = stack.log_in(email)
    stack.add_todo(headers, "precious")
    file_id = stack.execute("app", "python", "-c", STORE_FILE, "as precious").strip()
    output = stack.follow(write).split("docker compose logs")[0]
    (name,) = re.findall(r"Done: /backups/(\S+),", output)[:1]
    (folder,) = re.findall(r"Done: /backups/files/(\S+)", output)[:1]

    stack.delete_account(headers)
    form = {"grant_type": "password", "username": email, "password": PASSWORD}
    gone = stack.request_patiently("POST", "/api/v1/auth/token", data=form).status_code
    stack.execute("app", "sh", "-c", "rm -r /files/*")
    # The periodic backup of the files fails now, and leaves the container to the restore.
    stack.execute("backup", "sh", "-c", "rm /backups/.files-done")
    find_in_log(stack, "backup", "has no files, but")
    stack.follow(restore.replace("FILE", name).replace("FOLDER", folder))
    stack.wait_until_it_answers()

    assert gone == 400
    assert stack.execute("app", "python", "-c", READ_FILE, file_id).strip() == "as precious"
    assert (stack.project.path / "backups" / name).stat().st_size > 1000
    assert stack.list_todos(stack.log_in(email)) == {"precious"}


def test_truncated_backup_is_refused(stack: Stack, user: dict[str, str]) -> None:
    cut = "python -m app db backup /backups/cut.dump && truncate --size=-1 /backups/cut.dump"
    stack.execute("backup", "sh", "-c", cut)
    before = stack.list_todos(user)

    output = stack.execute(
        "backup", "sh", "-c", "python -m app db restore /backups/cut.dump --yes || echo refused with $?", check=False
    )

    assert "refused with 1" in output
    assert stack.list_todos(user) == before


def test_backups_are_made_by_themselves_and_a_missing_one_is_seen(stack: Stack) -> None:
    stack.execute("backup", "sh", "-c", "touch --date=2020-01-01 /backups/*; ./backup.sh health && exit 1 || exit 0")

    def is_healthy() -> bool:
        return "yes" in stack.execute("backup", "sh", "-c", "./backup.sh health && echo yes", check=False)

    def has_files_of_it() -> bool:
        newest = stack.execute("backup", "sh", "-c", "ls -t --directory /backups/*.dump /backups/.files-done")
        return newest.startswith("/backups/.files-done")

    wait_until(is_healthy, 60, lambda: "a new backup is there")
    wait_until(has_files_of_it, 60, lambda: "the files are backed up after the database")


def test_failed_backup_ends_with_an_error(stack: Stack) -> None:
    output = stack.execute("backup", "sh", "-c", "DATABASE_NAME=none python -m app db backup /backups; echo =$?")

    assert "=1" in output
    assert "Traceback" not in output


# As a whole


def test_data_outlives_the_containers(stack: Stack) -> None:
    email = stack.create_account()
    stack.add_todo(stack.log_in(email), "lasting")

    stack.compose("down")
    stack.up()

    assert stack.list_todos(stack.log_in(email)) == {"lasting"}


def test_first_deployment_has_an_administrator(stack: Stack) -> None:
    assert stack.request("GET", "/api/v1/users", headers=stack.log_in(ADMIN)).status_code == 200


def test_database_moves_to_a_new_server(stack: Stack, manual: dict[str, list[str]]) -> None:
    reach, minor, leave, arrive = manual["PostgreSQL"]
    email = stack.create_account()
    stack.add_todo(stack.log_in(email), "moved")

    stack.follow(reach, typed={"service=#": "\\q\n"})
    # See above.
    stack.follow(minor.replace("docker compose pull db\n", ""))
    stack.follow(leave)
    volumes = run_docker("volume", "ls", "--quiet")
    stack.follow(arrive)
    stack.wait_until_it_answers()

    assert f"{stack.project.path.name}_database" not in volumes
    assert stack.list_todos(stack.log_in(email)) == {"moved"}


def test_logs_tell_of_each_request_and_the_probe_answers_inside(stack: Stack, manual: dict[str, list[str]]) -> None:
    (look,) = manual["Logs and health"]
    path = f"/api/v1/{uuid4().hex}"
    request_id = stack.request("GET", path).headers["x-request-id"]

    # Ctrl-C, as soon as both have told.
    output = stack.follow(look, typed={f'"request_id":"{request_id}"': "\x03"})

    assert '{"status":"ready"' in output
    assert f'"path":"{path}"' in output


def test_every_command_of_the_manual_is_run(manual: dict[str, list[str]], origin: BakedProject) -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    blocks = [block for section in manual.values() for block in section]
    prose = re.sub(r"(?ms)^```sh\n.*?^```", "", read_manual_text(origin))
    inline = set(re.findall(r"`((?:docker|deploy/docker|openssl|git) [^`]+)`", prose))

    followed = set(re.findall(r'manual\["([^"]+)"\]', source))

    assert {heading for heading, section in manual.items() if section} == followed
    assert len(manual["Update, roll back, scale"]) == 6
    assert not [command for command in inline if not any(command in block for block in blocks)]


def test_sqlite_serves_from_three_instances_and_is_backed_up_and_restored(lite: Stack) -> None:
    email = lite.create_account()
    lite.up("--scale", "app=3", "--no-recreate")
    headers = lite.log_in(email)
    with load(lite, headers) as clients:
        clients.wait_for_answers(60)
    file_id = lite.execute("app", "python", "-c", STORE_FILE, "stored").strip()
    lite.execute("backup", "python", "-m", "app", "db", "backup", "/backups/test")
    lite.delete_account(headers)

    lite.execute("backup", "python", "-m", "app", "db", "restore", "/backups/test", "--yes")
    lite.compose("down")
    lite.up()

    # In a volume, which outlives the containers.
    assert lite.execute("app", "python", "-c", READ_FILE, file_id).strip() == "stored"
    assert clients.failures == []
    assert clients.acknowledged <= lite.list_todos(lite.log_in(email))


# The pages


def test_pages_and_their_files_come_through_the_proxy(lite: Stack) -> None:
    page = lite.request("GET", "/log-in", headers=OF_A_BROWSER)
    files = [lite.request("GET", find_style(page)) for _ in range(5)]

    assert page.status_code == 200
    assert {name: page.headers.get_list(name) for name in HEADERS} == {n: [v] for n, v in HEADERS.items()}
    (policy,) = page.headers.get_list("content-security-policy")
    assert "style-src 'self'" in policy
    assert page.headers["cache-control"] == "no-store"
    assert {file.headers["cache-control"] for file in files} == {"public, max-age=31536000, immutable"}
    assert {file.headers["content-type"] for file in files} == {"text/css; charset=utf-8"}
    assert {file.headers["content-encoding"] for file in files} == {"gzip"}
    assert "HIT" in {file.headers["x-cache-status"] for file in files}


def find_style(page: httpx2.Response) -> str:
    (style,) = re.findall(r'href="(/static/pages\.[0-9a-f]{16}\.css)"', page.text)
    return str(style)


def test_proxy_speaks_to_people_and_programs_while_the_application_is_out_of_reach(lite: Stack) -> None:
    style = find_style(lite.request("GET", "/", headers=OF_A_BROWSER))
    lite.request("GET", style)
    lite.compose("stop", "app")
    try:
        asked = {**OF_A_BROWSER, "Origin": PAGE_ORIGIN}
        page, answer = (lite.request("GET", path, headers=asked) for path in ("/todos", "/api/v1/todos"))
        file = lite.request("GET", style)
        codes = [uuid4().hex, uuid4().hex]
        for name, code in zip(("reset-password", "verify-email"), codes, strict=True):
            lite.request("GET", f"/{name}?token={code}", headers=OF_A_BROWSER)
        find_in_log(lite, "proxy", 'request: "GET /todos')
        # Under the name of nginx's own page: /todos is there twice.
        wait_until(
            lambda: len(find_in_log(lite, "proxy", '"status":503')) >= 4,
            RECOVERY_SECONDS,
            lambda: "four refusals are in the log",
        )
        logs = lite.compose("logs", "--no-log-prefix", "proxy")
    finally:
        lite.up()
        lite.wait_until_it_answers()

    assert page.status_code == 503
    assert page.headers["content-type"].startswith("text/html")
    assert "Out of reach for a moment" in page.text
    assert page.headers["retry-after"] == "1"
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert answer.headers["access-control-allow-origin"] == PAGE_ORIGIN
    assert file.status_code == 200
    # What a message holds is in no log.
    assert not [code for code in codes if code in logs]


def test_guesses_at_the_page_are_limited_and_told_so(lite: Stack) -> None:
    def log_in(_number: int) -> httpx2.Response:
        return lite.request("POST", "/log-in", data={"email": "x"}, headers=OF_A_BROWSER)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(log_in, range(AT_ONCE)))

    # By nginx: the application gives each answer an id.
    refused = [answer for answer in answers if answer.status_code == 429 and "x-request-id" not in answer.headers]
    assert len(refused) >= 10
    assert refused[0].headers["content-type"].startswith("text/html")
    assert "Too many requests" in refused[0].text


@pytest.mark.browser
def test_person_logs_in_through_the_proxy_with_cookies_for_tls_alone(lite: Stack) -> None:
    email = lite.create_account()

    with open_chromium(f"--host-resolver-rules=MAP {DOMAIN} 127.0.0.1") as chromium:
        context = chromium.new_context(ignore_https_errors=True)
        person = Person(context, f"https://{DOMAIN}:{lite.https_port}")
        person.open("/log-in")
        person.fill("E-mail address", email)
        person.fill("Password", PASSWORD)
        person.press("Log in")
        person.sees(f"Hello, {email}.")
        cookies = {cookie["name"]: cookie for cookie in context.cookies()}

    assert {"__Host-session", "__Host-visitor"} <= set(cookies)
    assert {(c["secure"], c["httpOnly"], c["sameSite"]) for c in cookies.values()} == {(True, True, "Lax")}
    assert person.complaints == []


# The other process managers


def test_other_process_managers_replace_a_worker_and_lose_no_write(lite: Stack) -> None:
    headers = lite.sign_up()
    containers, workers = lite.list_containers("app"), list_workers(lite)

    with load(lite, headers) as clients:
        clients.wait_for_answers(20)
        kill_a_worker(lite)
        wait_until(
            lambda: len(list_workers(lite) - {min(workers)}) == len(workers), RECOVERY_SECONDS, lambda: "a new worker"
        )
        clients.wait_for_answers(20)

    assert len(workers) >= 2
    assert lite.list_containers("app") == containers
    assert clients.acknowledged <= lite.list_todos(headers)


def test_other_process_managers_are_restarted_when_they_are_killed(lite: Stack) -> None:
    headers = lite.sign_up()
    (container,) = lite.list_containers("app")
    restarts = lite.inspect(container)["RestartCount"]

    kill_the_application(lite)

    wait_until(lambda: lite.inspect(container)["RestartCount"] > restarts, RECOVERY_SECONDS, lambda: "a restart")
    lite.wait_until_it_answers()
    assert lite.add_todo(headers).status_code == 201


def test_other_process_managers_end_their_requests_and_themselves_when_told(lite: Stack) -> None:
    (container,) = lite.list_containers("app")

    lite.compose("stop", "app")
    state = lite.inspect(container)["State"]
    lite.up()
    lite.wait_until_it_answers()

    assert state["ExitCode"] == 0


def test_update_under_other_process_managers_fails_no_request(lite: Stack, manual: dict[str, list[str]]) -> None:
    (renew,) = manual["Security updates"]
    headers = lite.sign_up()
    before = lite.list_containers("app")

    with load(lite, headers) as clients:
        clients.wait_for_answers(20)
        # Of the images that are there.
        lite.follow(renew.replace(" --pull --no-cache", ""))
        clients.wait_for_answers(20)

    assert clients.failures == []
    assert clients.acknowledged <= lite.list_todos(headers)
    assert not set(before) & set(lite.list_containers("app"))


def test_other_process_managers_log_json_and_add_up_what_their_workers_count(lite: Stack) -> None:
    before = count_deletions(lite)
    asked = [lite.request("DELETE", "/api/v1/users/me").status_code for _ in range(10)]
    wait_until(lambda: count_deletions(lite) == before + 10, RECOVERY_SECONDS, lambda: "all are counted")

    counts = [count_deletions(lite) for _ in range(6)]
    lines = run_docker("logs", lite.list_containers("app")[0]).splitlines()

    assert asked == [401] * 10
    assert counts == [before + 10] * 6
    assert [json.loads(line) for line in lines]


def count_deletions(stack: Stack) -> float:
    """How many requests to delete something were counted, as one of the workers tells."""
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/metrics', timeout=30).read().decode())"
    lines = stack.execute("app", "python", "-c", code).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith('http_requests_total{method="DELETE"'))


def test_development_reloads_what_is_changed_and_keeps_messages(bake: Bake) -> None:
    stack = Stack(bake(project_slug=f"dev-{uuid4().hex[:8]}"), production=False)
    router = stack.project.path / "app" / "health" / "router.py"
    try:
        stack.up("--build")
        docs = httpx2.get(f"http://127.0.0.1:{stack.port}/docs", timeout=30)
        router.write_text(router.read_text(encoding="utf-8").replace('"/health"', '"/health/new"'), encoding="utf-8")

        def is_reloaded() -> bool:
            try:
                return httpx2.get(f"http://127.0.0.1:{stack.port}/health/new", timeout=30).status_code == 200
            except httpx2.HTTPError:
                return False

        assert docs.status_code == 200
        wait_until(is_reloaded, 60, lambda: "the changed code answers")
        account = {"email": ADMIN, "password": PASSWORD}
        api = f"http://127.0.0.1:{stack.port}/api/v1"
        httpx2.post(f"{api}/users", json=account, timeout=30).raise_for_status()
        httpx2.post(f"{api}/auth/password/forgot", json={"email": ADMIN}, timeout=30).raise_for_status()
        wait_until(
            lambda: ADMIN in stack.execute("app", "sh", "-c", "cat /tmp/mail/*", check=False),
            RECOVERY_SECONDS,
            lambda: "a message",
        )
    finally:
        stack.down()


def test_image_is_built_from_a_lock_file_where_there_is_one(bake: Bake) -> None:
    stack = Stack(bake(project_slug=f"lock-{uuid4().hex[:8]}", database="sqlite"))
    stack.project.run([UV, "lock"])
    lock = stack.project.path / "uv.lock"
    try:
        stack.compose("build", "app")
        lock.write_text(
            lock.read_text(encoding="utf-8").replace('name = "alembic"', 'name = "alembik"'), encoding="utf-8"
        )
        refused = stack.compose("build", "app", check=False)
    finally:
        stack.down()

    assert "needs to be updated" in refused or "Failed to parse" in refused


def test_missing_secrets_are_made_and_given_ones_kept(bake: Bake) -> None:
    project: BakedProject = bake()
    names = project.secrets - {".env"}
    kept = hashlib.sha256(project.read("secrets/database_password").encode()).hexdigest()
    (project.path / "secrets" / "secret_key").unlink()

    project.run(["deploy/docker/secrets.sh"])

    assert {name for name in names if re.fullmatch("[0-9a-f]{64}", project.read(name))} == names
    assert hashlib.sha256(project.read("secrets/database_password").encode()).hexdigest() == kept
    assert (project.path / "secrets").stat().st_mode & 0o777 == 0o700


# Writes down what it is asked for. Of two new instances one gets ready.
ENGINE = """#!/bin/sh
echo "$*" >> asked
case "$*" in
    "compose ps --quiet app") printf '%s\\n' old older $(grep -q scale asked && echo new newer) ;;
    *id=new\\ *health=healthy*) echo new ;;
esac
"""


def test_instance_that_got_ready_is_drained_when_another_one_did_not(bake: Bake) -> None:
    project: BakedProject = bake()
    update, engine = project.path / "deploy" / "docker" / "update.sh", project.path / "bin" / "docker"
    update.write_text(
        update.read_text(encoding="utf-8").replace("WAIT_SECONDS=180", "WAIT_SECONDS=0"), encoding="utf-8"
    )
    engine.parent.mkdir()
    engine.write_text(ENGINE, encoding="utf-8")
    engine.chmod(0o755)

    output = project.run(
        ["sh", "-c", "deploy/docker/update.sh --no-build || echo ended with $?"],
        PATH=f"{engine.parent}:{os.environ['PATH']}",
    )

    drain = "compose exec -T proxy /bin/sh /etc/nginx/proxy/proxy.sh drain"
    assert "The new instances do not get ready: the old ones stay.\nended with 1" in output
    assert project.read("asked").splitlines()[-4:] == [f"{drain} new newer", "stop new newer", "rm new newer", drain]
