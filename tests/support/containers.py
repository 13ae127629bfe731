"""The containers of a baked project: started as an operator starts them, and used through nginx."""

import json
import os
import pty
import re
import selectors
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2

from tests.support.programs import person_environment, run_program
from tests.support.projects import BakedProject
from tests.support.serving import find_free_port, wait_until

DOMAIN = "example.com"
PASSWORD = "correct horse battery staple"
RECOVERY_SECONDS = 90
COMMAND_SECONDS = 400  # a build that downloads everything
TAG = "1.3.0"
ADMIN = "you@example.com"
PAGE_ORIGIN = "https://pages.example.com"
BROWSER_HEADERS = {"Accept": "text/html,*/*;q=0.8"}
SECURITY_HEADERS = {
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}
# Above nginx's rate limit and below its limit of connections.
CONCURRENCY = 30
# `migrate` has exited, but its container still exists.
HARDENED = ("proxy", "app", "backup", "db", "migrate")
RUNNING = HARDENED[:-1]


def has_engine() -> bool:
    """Whether a container engine answers, on this machine or at DOCKER_HOST."""
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def engine_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("DOCKER_")}


def run_docker(*arguments: str, check: bool = True, folder: Path | None = None, **variables: str) -> str:
    environment = person_environment(**engine_variables(), **variables)
    done = run_program(["docker", *arguments], COMMAND_SECONDS, folder=folder, env=environment)
    assert done.returncode == 0 or not check, f"docker {' '.join(arguments)}: {done.returncode}\n{done.stdout[-20000:]}"
    return done.stdout


class Terminal:
    """Runs commands in a terminal, and types an answer when its prompt appears."""

    def __init__(self, script: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._script, self.output = script, ""
        self._screen, keyboard = pty.openpty()
        try:
            self._process = subprocess.Popen(
                ["setsid", "--ctty", "sh", "-euc", script],
                cwd=folder,
                env=environment,
                stdin=keyboard,
                stdout=keyboard,
                stderr=keyboard,
            )
        finally:
            os.close(keyboard)

    def run(self, typed: Mapping[str, str]) -> None:
        remaining = dict(typed)
        deadline = time.monotonic() + COMMAND_SECONDS
        try:
            while part := self._read(deadline):
                self.output += part
                for text in [text for text in remaining if text in self.output]:
                    os.write(self._screen, remaining.pop(text).encode())
            code = self._process.wait(max(1, deadline - time.monotonic()))
        finally:
            self._end()
        # Ctrl-C ends a command that keeps printing a log.
        allowed = {0, 130, -signal.SIGINT} if "\x03" in typed.values() else {0}
        assert code in allowed, f"{self._script}: {code}\n{self.output[-20000:]}"
        assert not remaining, f"{self._script}: no {remaining.keys()} in\n{self.output[-20000:]}"

    def _read(self, deadline: float) -> str:
        with selectors.DefaultSelector() as selector:
            selector.register(self._screen, selectors.EVENT_READ)
            is_readable = selector.select(max(0, deadline - time.monotonic()))
        assert is_readable, f"{self._script}: not within {COMMAND_SECONDS} seconds\n{self.output[-20000:]}"
        try:
            return os.read(self._screen, 65536).decode(errors="replace")
        except OSError:  # the last program has closed the terminal
            return ""

    def _end(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._screen)


class Stack:
    """The containers of one project, in production or with the development settings."""

    def __init__(self, project: BakedProject, *, production: bool = True) -> None:
        self.project = project
        self._file = ["--file", "compose.yaml"] if production else []
        self.http_port, self.https_port, self.port, self.db_port = (find_free_port() for _ in range(4))
        self.variables = {
            "HTTP_PORT": str(self.http_port),
            "HTTPS_PORT": str(self.https_port),
            "PORT": str(self.port),
            "DB_PORT": str(self.db_port),
            "ACCESS_LOG": "true",
            "TAG": TAG,
        }
        # No connection is reused: a reload of nginx closes idle connections, and a request on a closed connection would
        # fail.
        fresh = httpx2.Limits(max_keepalive_connections=0)
        self.client = httpx2.Client(verify=unverified(), timeout=30, limits=fresh)

    def compose(self, *arguments: str, check: bool = True, **variables: str) -> str:
        environment = self.variables | variables
        return run_docker("compose", *self._file, *arguments, check=check, folder=self.project.path, **environment)

    def up(self, *options: str) -> None:
        try:
            self.compose("up", "--detach", "--wait", *options)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.compose('logs', '--tail', '50', check=False)}") from None

    def follow(self, script: str, folder: Path | None = None, typed: Mapping[str, str] | None = None) -> str:
        """Run a block of the manual with COMPOSE_FILE set as in its first deployment, and return the output."""
        variables = {"TERM": "dumb", "COMPOSE_FILE": "compose.yaml", **self.variables, **engine_variables()}
        terminal = Terminal(script, folder or self.project.path, person_environment(**variables))
        terminal.run(typed or {})
        return terminal.output

    def down(self) -> None:
        self.client.close()
        if self.project.path.exists():
            self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")
        names = ["--filter", f"reference={self.project.path.name}*", "--format", "{{.Repository}}:{{.Tag}}"]
        run_docker("rmi", "--force", *run_docker("images", *names).split(), check=False)

    @property
    def image(self) -> str:
        return f"{self.project.path.name}:{TAG}"

    def list_containers(self, service: str) -> list[str]:
        return self.compose("ps", "--quiet", service).split()

    def inspect(self, container: str) -> Any:  # noqa: ANN401  # JSON, whose structure depends on the engine
        return json.loads(run_docker("inspect", container))[0]

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        return self.compose("exec", "-T", service, *command, check=check)

    def kill(self, container: str) -> None:
        """Kill a container's first process, as a crash would; `docker kill` would count as a deliberate stop."""
        pid = self.inspect(container)["State"]["Pid"]
        command = ["python", "-c", f"import os; os.kill({pid}, 9)"]
        run_docker("run", "--rm", "--privileged", "--pid=host", "--user=0", "--entrypoint=", self.image, *command)

    def request(self, method: str, path: str, **options: Any) -> httpx2.Response:  # noqa: ANN401  # passed on to httpx2, which declares them
        headers = {"Host": DOMAIN, **options.pop("headers", {})}
        client = options.pop("client", self.client)
        url = f"https://127.0.0.1:{self.https_port}{path}"
        extensions = {"sni_hostname": options.pop("sni", DOMAIN)}
        response: httpx2.Response = client.request(method, url, headers=headers, extensions=extensions, **options)
        return response

    def request_with_retries(self, method: str, path: str, **options: Any) -> httpx2.Response:  # noqa: ANN401  # passed on to httpx2, which declares them
        """Repeat the request while the rate limit refuses it."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while (response := self.request(method, path, **options)).status_code == 429:
            assert time.monotonic() < deadline, "the limit does not end"
            time.sleep(0.5)
        return response

    def delete_account(self, headers: dict[str, str]) -> None:
        proof = {"current_password": PASSWORD}
        confirmed = self.request_with_retries("POST", "/api/v1/auth/confirmation", json=proof, headers=headers)
        confirmation = {"X-Confirmation": confirmed.json()["confirmation"]}
        deleted = self.request("DELETE", "/api/v1/users/me", headers=headers | confirmation)
        assert deleted.status_code == 204, deleted.text

    def sign_up(self) -> dict[str, str]:
        """Create an account, and return the headers that authenticate it."""
        return self.sign_in(self.create_account())

    def create_account(self) -> str:
        email = f"{uuid4().hex}@example.com"
        account = {"email": email, "password": PASSWORD}
        response = self.request_with_retries("POST", "/api/v1/users", json=account)
        assert response.status_code == 201, response.text
        return email

    def sign_in(self, email: str) -> dict[str, str]:
        form = {"grant_type": "password", "username": email, "password": PASSWORD}
        response = self.request_with_retries("POST", "/api/v1/auth/token", data=form)
        assert response.status_code == 200, response.text
        return {"Authorization": f"Bearer {response.json()['access_token']}"}

    def add_todo(self, headers: dict[str, str], title: str = "todo", **options: Any) -> httpx2.Response:  # noqa: ANN401  # passed on to httpx2, which declares them
        return self.request("POST", "/api/v1/todos", json={"title": title}, headers=headers, **options)

    def list_todos(self, headers: dict[str, str]) -> set[str]:
        """Return the titles of all todos."""
        titles: set[str] = set()
        query: dict[str, str] = {"limit": "100"}
        while True:
            page = self.request("GET", "/api/v1/todos", params=query, headers=headers).json()
            titles |= {todo["title"] for todo in page["items"]}
            if page["next_cursor"] is None:
                return titles
            query["cursor"] = page["next_cursor"]

    def answers(self) -> bool:
        with suppress(httpx2.HTTPError):
            return self.request("GET", "/api/v1/users/me").status_code == 401
        return False

    def wait_until_ready(self) -> None:
        wait_until(self.answers, RECOVERY_SECONDS, lambda: "the service answers")

    def serving(self) -> list[str]:
        """Return the addresses of the instances that nginx uses."""
        text = self.execute("proxy", "cat", "/run/nginx/instances.conf")
        return [line.split()[1] for line in text.splitlines() if line.startswith("server ")]


class Load:
    """Clients that write and read until they are stopped, with a new connection for each request."""

    def __init__(self, stack: Stack, headers: dict[str, str], clients: int = 3, pause_seconds: float = 0.1) -> None:
        self._stack, self._headers, self._pause = stack, headers, pause_seconds
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]
        self.acknowledged: set[str] = set()
        self.failures: list[str] = []
        self.answered = 0

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            title = uuid4().hex
            try:
                # A new connection for each request: nginx may close an idle one at any moment, for example on a reload.
                with httpx2.Client(verify=unverified(), timeout=30) as client:
                    written = self._stack.add_todo(self._headers, title, client=client).status_code
                with httpx2.Client(verify=unverified(), timeout=30) as client:
                    read = self._stack.request(
                        "GET", "/api/v1/todos", params={"limit": "1"}, headers=self._headers, client=client
                    ).status_code
            except httpx2.HTTPError as error:
                self.failures.append(repr(error))
                continue
            if written == 201:
                self.acknowledged.add(title)
            self.answered += (written == 201) + (read == 200)
            self.failures += [str(status) for status in (written, read) if status not in {200, 201}]

    def wait_for_answers(self, count: int) -> None:
        """Wait for this number of further successful responses."""
        goal = self.answered + count
        wait_until(
            lambda: self.answered >= goal, RECOVERY_SECONDS, lambda: f"{count} more answers, after {self.failures[-3:]}"
        )


@contextmanager
def load(stack: Stack, headers: dict[str, str]) -> Iterator[Load]:
    load = Load(stack, headers)
    for thread in load._threads:
        thread.start()
    try:
        yield load
    finally:
        load._stop.set()
        for thread in load._threads:
            thread.join(RECOVERY_SECONDS)
            assert not thread.is_alive(), "a request without an end"


def read_manual_text(project: BakedProject) -> str:
    """Return the operator's manual, docs/containers.md."""
    return project.read("docs/containers.md")


def read_manual(project: BakedProject) -> dict[str, list[str]]:
    """Return the blocks of commands in docs/containers.md, by heading."""
    sections = dict(section.split("\n", 1) for section in re.split(r"(?m)^## ", read_manual_text(project))[1:])
    return {heading: re.findall(r"(?ms)^```sh\n(.*?)^```", text) for heading, text in sections.items()}


def unverified() -> ssl.SSLContext:
    """Return a TLS context without verification: the certificate is self-signed until the operator installs one."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def list_with_exited(stack: Stack, service: str) -> list[str]:
    """List the containers of a service, including exited containers."""
    return stack.compose("ps", "--all", "--quiet", service).split()


def describe_network(stack: Stack, name: str) -> Any:  # noqa: ANN401  # JSON, whose structure depends on the engine
    return json.loads(run_docker("network", "inspect", f"{stack.project.path.name}_{name}"))[0]


def address_in(stack: Stack, service: str, network: str) -> str:
    (container,) = stack.list_containers(service)
    networks = stack.inspect(container)["NetworkSettings"]["Networks"]
    address: str = networks[f"{stack.project.path.name}_{network}"]["IPAddress"]
    return address


def find_in_log(stack: Stack, service: str, pattern: str) -> list[str]:
    """Wait for matches in a service's log and return them: a line may appear after the response that it describes."""
    found: list[str] = []

    def has_matches() -> bool:
        found[:] = re.findall(pattern, stack.compose("logs", "--no-log-prefix", service))
        return bool(found)

    wait_until(has_matches, RECOVERY_SECONDS, lambda: f"{service} logs {pattern}")
    return found


def list_workers(stack: Stack) -> set[int]:
    """Return the ids of the workers: the children of the container's first process."""
    return set(map(int, stack.execute("app", "cat", "/proc/1/task/1/children").split()))


def kill_a_worker(stack: Stack) -> None:
    stack.execute("app", "python", "-c", f"import os; os.kill({min(list_workers(stack))}, 9)")


def kill_the_application(stack: Stack) -> None:
    stack.kill(stack.list_containers("app")[0])


def commit(project: BakedProject, message: str) -> None:
    project.run(["git", "add", "--all"])
    project.run(["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "--quiet", "-m", message])
