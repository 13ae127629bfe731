"""The servers that the tests provision, each with a different project."""

import re
import shlex
import socket
import time
from dataclasses import dataclass

from tests.support.machines import Machine, Site
from tests.support.projects import BakedProject
from tests.support.serving import Answer, wait_until

DOMAIN = "app.vm.test"
PASSWORD = "correct horse battery staple"
EMAIL = "ada@example.com"
PROJECT = "/root/project"
TOKEN = "/api/v1/auth/token"
TODOS = "/api/v1/todos"
BROWSER_HEADERS = {"Accept": "text/html,*/*;q=0.8"}


# Locks apt's lists for five seconds, as the automatic update of a fresh server does. Every Debian has perl.
LOCK_APT_LISTS = """
perl -MFcntl -e '
    open(my $file, ">>", "/var/lib/apt/lists/lock") or die;
    my $whole = pack("s s x4 q q i x4", F_WRLCK, 0, 0, 0, 0);
    fcntl($file, F_SETLK, $whole) or die;
    sleep 5;
' > /dev/null 2>&1 &
"""


@dataclass(frozen=True)
class Options:
    """The options of a server and of its project."""

    slug: str
    database: str = "postgresql"
    process_manager: str = "gunicorn"
    web_pages: str = "no"
    release: str | None = None


SERVERS = {
    "postgresql": Options("todo-list"),
    "debian13": Options("todo-list", process_manager="circus", release="trixie"),
    # The longest slug: the names of sockets, accounts and firewall chains have shorter limits.
    "sqlite": Options(
        "a-service-whose-name-is-as-long-as-a-name-may-be-x",
        database="sqlite",
        process_manager="supervisor",
        web_pages="yes",
    ),
}


@dataclass
class Server:
    machine: Machine
    project: BakedProject
    site: Site
    # Output of each step of `prepare`.
    outputs: dict[str, str]

    @property
    def slug(self) -> str:
        return self.project.answers["project_slug"]

    @property
    def owner(self) -> str:
        """The owner of the database: the PostgreSQL role and system account, or with SQLite the service's account."""
        if self.project.answers["database"] == "postgresql":
            return f"{self.slug[:25]}-owner"
        return self.slug[:31]

    def deploy(self, *arguments: str, folder: str = PROJECT) -> str:
        return self.machine.run(shlex.join([f"{folder}/deploy/vm/deploy.sh", *arguments]))

    @property
    def instance(self) -> str:
        """The systemd unit of the active instance."""
        return self.machine.run(f"basename $(readlink /etc/{self.slug}/active.sock) .sock | sed 's/.*/{self.slug}@&/'")

    @property
    def release(self) -> str:
        return self.machine.run(f"basename $(readlink /opt/{self.slug}/current)")

    def unit_properties(self, *names: str) -> dict[str, str]:
        shown = self.machine.run(f"systemctl show -p {','.join(names)} {self.instance}")
        return dict(line.split("=", 1) for line in shown.splitlines())

    def main_pid(self) -> int:
        return int(self.machine.run(f"systemctl show -P MainPID {self.instance}"))

    def pids(self) -> tuple[int, set[int]]:
        """Return the id of the process manager and the ids of the workers."""
        main = self.main_pid()
        return main, set(map(int, self.machine.run(f"pgrep -P {main} || true").split()))

    def wait_for_workers(self) -> tuple[int, set[int]]:
        """Wait until all workers run (one per core, at least two), and return the ids as `pids` does."""
        count = max(2, int(self.machine.run("nproc")))
        wait_until(lambda: len(self.pids()[1]) == count, 60, lambda: f"{count} workers: {self.pids()}")
        return self.pids()

    def worker_stop_seconds(self) -> int:
        """Return how long the process manager waits for a worker to stop."""
        if self.project.answers["process_manager"] == "gunicorn":
            release, environment = f"/opt/{self.slug}/current", f"/etc/{self.slug}/env"
            show = f"cd {release}; set -a; . {environment}; .venv/bin/gunicorn -c gunicorn_conf.py --print-config"
            found = re.search(r"(?m)^graceful_timeout +(?:= )?(\d+)", self.machine.run(show))
        else:
            _, workers = self.wait_for_workers()
            inherited = self.machine.run(f"tr '\\0' '\\n' < /proc/{min(workers)}/environ")
            found = re.search(r"(?m)^SERVICE_STOP_SECONDS=(\d+)$", inherited)
        assert found
        return int(found[1])

    def count_requests(self) -> float:
        """Return the number of DELETE requests in the metrics: one worker answers with the counts of all workers."""
        socket = f"/etc/{self.slug}/active.sock"
        metrics = self.machine.run(f"curl --silent --show-error --fail --unix-socket {socket} http://{DOMAIN}/metrics")
        counts = re.findall(r'(?m)^http_requests_total\{method="DELETE".*\} (\S+)$', metrics)
        return sum(map(float, counts))

    def sign_in(self) -> str:
        answer = self.site.request(
            "POST", TOKEN, {"grant_type": "password", "username": EMAIL, "password": PASSWORD}, form=True
        )
        assert answer.status == 200, answer.body
        token: str = answer.json["access_token"]
        return token

    def titles(self, token: str) -> list[str]:
        return [todo["title"] for todo in self.site.request("GET", f"{TODOS}?limit=100", token=token).json["items"]]

    def run_python(self, program: str, argument: str) -> str:
        """Run a program as the service's account, with the configuration and the Python of the active release."""
        command = f"runuser -u {self.slug[:31]} -- .venv/bin/python -c {shlex.quote(program)} {shlex.quote(argument)}"
        return self.machine.run(f"set -a; . /etc/{self.slug}/env; cd /opt/{self.slug}/current; {command}")

    def setting(self, line: str) -> None:
        self.machine.run(f"echo {shlex.quote(line)} >> /etc/{self.slug}/env")

    @property
    def schema(self) -> str:
        """The migration revision of PostgreSQL's database."""
        return self.machine.run(f"cd /; runuser -u postgres -- psql -At {self.slug} -c 'TABLE alembic_version'")

    @property
    def restarts(self) -> int:
        return int(self.machine.run(f"systemctl show -P NRestarts {self.instance}"))


def prepare(machine: Machine, project: BakedProject) -> Server:
    outputs = {}
    machine.push(project.path, PROJECT)
    provision = f"{PROJECT}/deploy/vm/provision.sh"
    outputs["dry run"] = machine.run(f"{provision} --dry-run")
    outputs["after the dry run"] = machine.run("ls /etc /opt; getent passwd")
    started = time.monotonic()
    outputs["first"] = machine.run(f"{LOCK_APT_LISTS}{provision}")
    outputs["deploy"] = machine.run(f"{PROJECT}/deploy/vm/deploy.sh")
    trusted = machine.run(f"cat /etc/{project.answers['project_slug']}/tls/fullchain.pem")
    site = Site(machine.address, DOMAIN, trusted)
    assert site.answers()
    print(f"\nFrom a fresh machine to HTTPS: {time.monotonic() - started:.0f} s")  # noqa: T201  # a measured time, for the report of the tests
    outputs["second"] = machine.run(provision)
    return Server(machine, project, site, outputs)


def create(server: Server, token: str, title: str) -> Answer:
    return server.site.request("POST", TODOS, {"title": title}, token=token)


def reaches(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=3):
            return True
    except OSError:
        return False


def is_served(server: Server, token: str) -> bool:
    return server.site.request("GET", f"{TODOS}?limit=1", token=token).status == 200
