"""The baked project, unmodified, on a fresh server with systemd, used through nginx: these tests take minutes."""

import base64
import json
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import ClassVar
from uuid import uuid4

import pytest

from tests.support.machines import COMMANDS, Load, Machine, Site, start_machine
from tests.support.projects import Bake, BakedProject
from tests.support.serving import Answer, wait_until
from tests.support.stored_files import READ_FILE, STORE_FILE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMMANDS is None, reason="needs a fresh server: set TEST_MACHINE_COMMANDS (CONTRIBUTING.md)"),
]

DOMAIN = "app.vm.test"
PASSWORD = "correct horse battery staple"
EMAIL = "ada@example.com"
PROJECT = "/root/project"
# The longest name: sockets, accounts and firewall chains have limits of their own.
SLUGS = {"postgresql": "todo-list", "sqlite": "a-service-whose-name-is-as-long-as-a-name-may-be-x"}
TOKEN = "/api/v1/auth/token"
TODOS = "/api/v1/todos"
OF_A_BROWSER = {"Accept": "text/html,*/*;q=0.8"}
# As JSON, like every other line of the service.
TELL_OF_NEW_CODE = "print('\"the code is new\"')"


# As a fresh server that fetches apt's lists by itself, for some seconds; perl is on each.
HOLD_THE_LISTS = """
perl -MFcntl -e '
    open(my $file, ">>", "/var/lib/apt/lists/lock") or die;
    my $whole = pack("s s x4 q q i x4", F_WRLCK, 0, 0, 0, 0);
    fcntl($file, F_SETLK, $whole) or die;
    sleep 5;
' > /dev/null 2>&1 &
"""


@dataclass
class Server:
    machine: Machine
    project: BakedProject
    site: Site
    # What was printed, in the order that it was.
    outputs: dict[str, str]

    @property
    def slug(self) -> str:
        return self.project.answers["project_slug"]

    @property
    def owner(self) -> str:
        """The account and the role of PostgreSQL that owns the database; on SQLite, the service's account."""
        if self.project.answers["database"] == "postgresql":
            return f"{self.slug[:25]}-owner"
        return self.slug[:31]

    def deploy(self, *arguments: str, folder: str = PROJECT) -> str:
        return self.machine.run(shlex.join([f"{folder}/deploy/vm/deploy.sh", *arguments]))

    @property
    def instance(self) -> str:
        """The unit that serves."""
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
        """The process that keeps the workers alive, and those of the workers."""
        main = self.main_pid()
        return main, set(map(int, self.machine.run(f"pgrep -P {main} || true").split()))

    def wait_for_workers(self) -> tuple[int, set[int]]:
        """The same once all are there: one a core, and two at least. The first one serves before the others exist."""
        count = max(2, int(self.machine.run("nproc")))
        wait_until(lambda: len(self.pids()[1]) == count, 60, lambda: f"{count} workers: {self.pids()}")
        return self.pids()

    def worker_stop_seconds(self) -> int:
        """How long the process manager waits for a worker that it has told to stop."""
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
        """How many requests to delete something were counted, as one of the workers tells."""
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
        """Run it as the service's account, with the configuration and the Python of the release that serves."""
        command = f"runuser -u {self.slug[:31]} -- .venv/bin/python -c {shlex.quote(program)} {shlex.quote(argument)}"
        return self.machine.run(f"set -a; . /etc/{self.slug}/env; cd /opt/{self.slug}/current; {command}")

    def setting(self, line: str) -> None:
        self.machine.run(f"echo {shlex.quote(line)} >> /etc/{self.slug}/env")

    @property
    def schema(self) -> str:
        """The revision that PostgreSQL's database is at."""
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
    outputs["first"] = machine.run(f"{HOLD_THE_LISTS}{provision}")
    outputs["deploy"] = machine.run(f"{PROJECT}/deploy/vm/deploy.sh")
    trusted = machine.run(f"cat /etc/{project.answers['project_slug']}/tls/fullchain.pem")
    site = Site(machine.address, DOMAIN, trusted)
    assert site.answers()
    print(f"\nFrom a fresh machine to HTTPS: {time.monotonic() - started:.0f} s")  # noqa: T201  # a figure to report
    outputs["second"] = machine.run(provision)
    return Server(machine, project, site, outputs)


@pytest.fixture(scope="class")
def server(request: pytest.FixtureRequest, bake: Bake) -> Iterator[Server]:
    answers = {"project_slug": SLUGS[request.cls.database], "process_manager": request.cls.process_manager}
    project = bake(deployment="vm", domain_name=DOMAIN, database=request.cls.database, **answers, **request.cls.answers)
    with start_machine(request.cls.release) as machine:
        server = prepare(machine, project)
        account = {"email": EMAIL, "password": PASSWORD}
        assert server.site.request("POST", "/api/v1/users", account).status == 201
        yield server


@pytest.fixture
def token(server: Server) -> str:
    return server.sign_in()


def cookies_of(answer: Answer) -> dict[str, str]:
    """The header that sends back what an answer has set."""
    cookies = answer.headers.get_all("Set-Cookie", [])
    return {"Cookie": "; ".join(cookie.partition(";")[0] for cookie in cookies)}


def create(server: Server, token: str, title: str) -> Answer:
    return server.site.request("POST", TODOS, {"title": title}, token=token)


MIGRATION = """
from alembic import op

revision = "{revision}"
down_revision = "{down}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE TABLE extra (id integer)")


def downgrade() -> None:
    op.execute("DROP TABLE extra")
"""


@pytest.fixture
def copy(server: Server) -> Iterator[str]:
    """A copy of the project on the server, to change."""
    folder = "/root/copy"
    server.machine.run(f"rm -rf {folder}; cp -R {PROJECT} {folder}")
    yield folder
    server.machine.run(f"rm -rf {folder}")


def add_migration(server: Server, folder: str) -> str:
    """Write a migration, and return the revision before it."""
    head = server.machine.run(f"cat /opt/{server.slug}/current/.schema")
    text = MIGRATION.format(revision="9999", down=head)
    server.machine.run(f"printf %s {shlex.quote(text)} > {folder}/migrations/versions/9999_extra.py")
    return head


def destroy_database(server: Server) -> None:
    if server.project.answers["database"] == "postgresql":
        drop = f'DROP DATABASE "{server.slug}"; CREATE DATABASE "{server.slug}" OWNER "{server.owner}"'
        statements = " ".join(f"-c {shlex.quote(statement)}" for statement in drop.split("; "))
        server.machine.run(f"cd /tmp; runuser -u postgres -- psql -q {statements}")
    else:
        server.machine.run(f"rm /var/lib/{server.slug}/app.sqlite3*")


def reaches(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=3):
            return True
    except OSError:
        return False


def banned_until_unbanned(server: Server, jail: str, offend: Callable[[], object]) -> None:
    ours = json.loads(server.machine.run("tail -n 1 /var/log/nginx/access.log"))["client"]
    try:
        # The last ones may be refused already.
        with suppress(OSError):
            offend()
        wait_until(lambda: not reaches(server.site.address, 443), 30, lambda: f"{jail} has banned us")
        assert ours in server.machine.run(f"fail2ban-client status {jail}")
        assert reaches(server.site.address, 22)
    finally:
        server.machine.run(f"fail2ban-client set {jail} unbanip {ours}")
    server.site.wait()


@pytest.fixture
def ssh_settings(server: Server) -> Iterator[tuple[str, str]]:
    """Files for settings of sshd and of the socket that systemd can start it by; everything is as before afterwards."""
    files = "/etc/ssh/sshd_config.d/port.conf", "/etc/systemd/system/ssh.socket.d/port.conf"
    yield files
    server.machine.run(
        f"""
        rm -f {" ".join(files)}
        systemctl daemon-reload; systemctl stop ssh.socket ssh; systemctl start ssh
        for port in 2222 2223 2224; do ufw delete allow "$port/tcp"; done
        """
    )


def opened_by_provision(server: Server, port: int) -> bool:
    """Whether it was closed before."""
    closed = not reaches(server.site.address, port)
    server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")
    return closed and reaches(server.site.address, port)


def is_served(server: Server, token: str) -> bool:
    return server.site.request("GET", f"{TODOS}?limit=1", token=token).status == 200


@pytest.fixture
def acme_root(server: Server) -> Iterator[str]:
    """An authority that speaks ACME, on the server itself: the certificate that it signs others with."""
    machine, slug = server.machine, server.slug
    machine.push(machine.commands / "acme-server.sh", "/root/acme-server.sh")
    # By itself the server refuses every twentieth nonce, and certbot gives up when it refuses two in a row.
    machine.run(
        f"""
        cd /etc/systemd/system && mkdir acme-server.service.d
        printf '[Service]\nEnvironment=PEBBLE_WFE_NONCEREJECT=0\n' > acme-server.service.d/nonces.conf
        cp /etc/hosts /root/hosts
        /root/acme-server.sh {DOMAIN}
        cp /etc/acme-server/ca.pem /usr/local/share/ca-certificates/acme-server.crt
        update-ca-certificates
        echo 'server = https://localhost:14000/dir' > /etc/letsencrypt/cli.ini
        """
    )
    yield machine.run("cat /etc/acme-server/issuer-root.pem")
    machine.run(
        f"""
        systemctl stop acme-server
        rm -r /etc/systemd/system/acme-server.service.d
        rm -rf /etc/letsencrypt/{{cli.ini,accounts,archive,live,renewal}}
        rm /usr/local/share/ca-certificates/acme-server.crt
        update-ca-certificates --fresh
        cat /root/hosts > /etc/hosts
        ln -sfn /etc/{slug}/self-signed /etc/{slug}/tls
        systemctl reload nginx
        """
    )
    server.site.wait()


def serial_of(server: Server) -> str:
    connect = f"timeout 20 openssl s_client -connect 127.0.0.1:443 -servername {DOMAIN} </dev/null 2>&1"
    return server.machine.run(f"{connect} | openssl x509 -noout -serial")


def kill_and_wait(machine: Machine, unit: str) -> None:
    """Kill the main process of a unit; return when systemd has started another one."""
    show = f"systemctl show -P ActiveState -P MainPID {unit}"
    before = set(machine.run(show).split())
    machine.run(f"kill -9 $(systemctl show -P MainPID {unit})")
    wait_until(
        lambda: set(machine.run(show).split()) - {*before - {"active"}, "0"} > {"active"}, 60, lambda: f"{unit} is back"
    )


def count_new_code(server: Server) -> int:
    journal = f"journalctl -u {server.instance} -o cat --since=-5min"
    return int(server.machine.run(f"{journal} | grep -c 'the code is new' || true"))


# Its addresses stand for clients: the machine itself has them all, so that it can speak from each.
SITE_ADDRESS = "2001:db8:ffff::1"


@pytest.fixture
def networks(server: Server) -> Iterator[tuple[list[str], list[str]]]:
    """The addresses of two networks of IPv6, of 60 clients and of 3."""
    crowd = [f"2001:db8:0:a::{number:x}" for number in range(1, 61)]
    others = [f"2001:db8:0:b::{number:x}" for number in range(1, 4)]
    addresses = [SITE_ADDRESS, *crowd, *others]
    batch = "printf 'address {{}} %s/128 dev lo\\n' {} | ip -6 -batch -".format(" ".join(addresses))
    server.machine.run(batch.format("add"))
    try:
        yield crowd, others
    finally:
        server.machine.run(f"{batch.format('del')}; fail2ban-client unban --all")


def ask_from(server: Server, sources: Sequence[str], path: str, *options: str) -> list[int]:
    """Send one request from each address, and return the statuses; 0 is no answer."""
    curl = ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}\\n", "--interface", "{}"]
    curl += ["--max-time", "60", "--resolve", f"{DOMAIN}:443:[{SITE_ADDRESS}]", *options, f"https://{DOMAIN}{path}"]
    each = f"printf '%s\\n' {shlex.join(sources)} | xargs --max-procs=4 --replace={{}} {shlex.join(curl)} || true"
    return list(map(int, server.machine.run(each).split()))


GUESS = ("--data", "grant_type=password&username=nobody@example.com&password=wrong-password-123")

# Sends all but the end of a request from each address twice, and tells how many are answered all the same. nginx waits
# 10 seconds for the rest, and then 10 more after the last byte.
HOLD_CONNECTIONS = """
import socket, ssl, sys, time
context = ssl._create_unverified_context()
domain, site, *sources = sys.argv[1:]
head = f"POST /api/v1/todos HTTP/1.1\\r\\nHost: {domain}\\r\\nContent-Length: 1000\\r\\n\\r\\n"
waiting = []
for source in sources * 2:
    plain = socket.create_connection((site, 443), timeout=30, source_address=(source, 0))
    waiting.append(context.wrap_socket(plain, server_hostname=domain))
for connection in waiting:
    connection.sendall(head.encode())
    connection.setblocking(False)

def is_refused(connection):
    try:
        return b" 429 " in connection.recv(4096)
    except ssl.SSLWantReadError:
        return False

for _ in range(5):
    time.sleep(0.5)
    waiting = [connection for connection in waiting if not is_refused(connection)]
    for connection in waiting:
        connection.send(b"x")
print(2 * len(sources) - len(waiting), flush=True)
time.sleep(600)
"""

# A dependency whose code tries what it likes when it is built, and each time that Python starts where it is installed.
# Building it needs no other package.
DEPENDENCY = {
    "pyproject.toml": """
[project]
name = "greedy"
version = "1"
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
""",
    "backend.py": """
import base64, zipfile
from pathlib import Path
import attempt

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "greedy-1-py3-none-any.whl"
    with zipfile.ZipFile(Path(folder, name), "w") as wheel:
        wheel.writestr("built.json", attempt.report())
        wheel.writestr("attempt.py", Path(attempt.__file__).read_text())
        wheel.writestr("greedy.pth", "import attempt; attempt.leave_report()\\n")
        wheel.writestr("greedy-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: greedy\\nVersion: 1\\n")
        wheel.writestr("greedy-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("greedy-1.dist-info/RECORD", "")
    return name
""",
    "attempt.py": """
import glob, json, os

def report():
    done = []
    for path in [
        "/root/greedy", "/etc/greedy", "/usr/greedy", "/var/lib/greedy", "SLUG_FOLDER/greedy",
        *glob.glob("SLUG_FOLDER/releases/*/deploy/vm/deploy.sh"), *glob.glob("SLUG_FOLDER/releases/*/app/main.py"),
    ]:
        try:
            open(path, "a").close()
            done.append(path)
        except OSError:
            pass
    try:
        open("/etc/SLUG/env").close()
        done.append("read the secrets")
    except OSError:
        pass
    return json.dumps({"user": os.getuid(), "done": done})

def leave_report():
    try:
        with open(".build/started.json", "w") as file:
            file.write(report())
        os.chmod(".build/started.json", 0o4777)
    except OSError:
        pass
""",
}


class ServerTests:
    """One class for each server, so that pytest-xdist gives each to one worker, which prepares it once."""

    database: ClassVar[str]
    process_manager: ClassVar[str] = "gunicorn"
    release: ClassVar[str | None] = None
    answers: ClassVar[dict[str, str]] = {}

    def test_dry_run_tells_what_it_would_change_and_changes_nothing(self, server: Server) -> None:
        planned = [line for line in server.outputs["dry run"].splitlines() if line.startswith("- ")]

        assert any("install" in line and "nginx" in line for line in planned)
        assert f"{len(planned)} changes would be made; nothing was changed" in server.outputs["dry run"]
        assert server.slug not in server.outputs["after the dry run"]
        assert "nginx" not in server.outputs["after the dry run"]

    def test_second_provision_changes_nothing_and_says_so(self, server: Server) -> None:
        assert "Nothing changed" in server.outputs["second"]
        assert "\n- " not in server.outputs["second"]

    def test_machine_is_up_and_everything_runs(self, server: Server) -> None:
        timers = " ".join(f"{server.slug}-{job}.timer" for job in ("backup", "certificate", "health"))

        assert server.machine.run("systemctl is-system-running") == "running"
        server.machine.run(f"systemctl is-active nginx ufw fail2ban unattended-upgrades certbot.timer {timers}")
        server.machine.run(f"systemctl is-enabled systemd-timesyncd {server.slug}.target")

    def test_units_are_hardened_and_without_a_complaint(self, server: Server) -> None:
        kinds = ".service,.socket,.target,.timer,@.service,@.socket"
        listing = f"cd /etc/systemd/system && ls {server.slug}{{-*,}}{{{kinds}}} 2>/dev/null || true"
        units = server.machine.run(listing).replace("@.", "@a.").split()

        # On PostgreSQL, a separate unit backs up the database.
        more = int(server.project.answers["database"] == "postgresql")
        assert len(units) == 9 + more
        complaints = server.machine.run(f"systemd-analyze verify {shlex.join(units)} 2>&1")
        services = [unit for unit in units if unit.endswith(".service")]
        analyze = "systemd-analyze security --no-pager {} | tail -n 1"
        scores = {unit: server.machine.run(analyze.format(unit)) for unit in services}

        assert complaints == ""
        assert len(scores) == 4 + more
        exposures = {unit: float(score.split(": ")[1].split()[0]) for unit, score in scores.items()}
        assert max(exposures.values()) <= 2.5, exposures

    def test_nginx_listens_on_ipv4_alone_where_the_kernel_has_no_ipv6(self, server: Server) -> None:
        provision = f"{PROJECT}/deploy/vm/provision.sh"
        listed = "nginx -T 2>/dev/null | grep -c 'listen \\[::\\]:' || true"
        before = int(server.machine.run(listed))
        # The folder is missing where IPv6 is switched off when the kernel starts.
        without = server.machine.run(f"unshare --mount sh -c 'mount -t tmpfs none /proc/sys/net && {provision}'")
        meanwhile = int(server.machine.run(listed))
        server.machine.run(provision)

        assert f"write /etc/nginx/conf.d/{server.slug}.conf" in without
        assert (before > 0, meanwhile, int(server.machine.run(listed))) == (True, 0, before)
        server.site.wait()

    def test_account_has_no_shell_and_only_it_reads_the_secrets(self, server: Server) -> None:
        account = server.slug[:31]

        assert server.machine.run(f"getent passwd {account}").endswith("/usr/sbin/nologin")
        assert server.machine.run(f"stat -c '%a %U %G' /etc/{server.slug}/env") == f"640 root {account}"
        folders = server.machine.run(f"stat -c '%a %U' /var/lib/{server.slug} /var/backups/{server.slug}").splitlines()
        assert folders == [f"700 {account}", f"{'700' if server.owner == account else '710'} {server.owner}"]
        assert server.machine.run(f"find /opt/{server.slug}/ ! -user root") == ""
        assert server.machine.run(f"stat -c '%a %U %G' /etc/{server.slug}/self-signed/privkey.pem") == "600 root root"

    def test_person_signs_in_and_keeps_todos_over_https(self, server: Server, token: str) -> None:
        created = create(server, token, "Deploy it")
        todo = f"{TODOS}/{created.json['id']}"
        changed = server.site.request("PATCH", todo, {"title": "Trust it"}, token=token)
        titles = server.titles(token)
        deleted = server.site.request("DELETE", todo, token=token)

        assert (created.status, changed.status, deleted.status) == (201, 200, 204)
        assert "Trust it" in titles
        assert "Trust it" not in server.titles(token)

    def test_plain_http_leads_to_https_and_what_is_internal_stays_inside(self, server: Server) -> None:
        code = uuid4().hex
        path = f"/reset-password?token={code}"
        assert server.site.redirect_of(path) == (308, f"https://{DOMAIN}{path}")
        server.machine.run('grep \'"path":"/reset-password"\' /var/log/nginx/access.log')
        server.machine.fails(f"grep --recursive --fixed-strings {code} /var/log/nginx")
        assert [server.site.request("GET", path).status for path in ("/metrics", "/health/ready", "/docs")] == [404] * 3
        assert server.site.request("GET", "/static/favicon.svg").status == 200

    def test_commands_of_the_service_run_on_the_server(self, server: Server) -> None:
        manage = f"{server.slug}-manage"

        output = server.machine.run(
            f"echo {shlex.quote(PASSWORD)} | {manage} users create-admin root@example.com --password-stdin"
        )

        assert "root@example.com is an administrator" in output
        assert "production" in server.machine.run(f"{manage} check")
        server.machine.run(f"{manage} users deactivate root@example.com")

    def test_arguments_of_a_command_arrive_as_they_were_typed(self, server: Server) -> None:
        revision = "$HOME.${HOME}$$%h'\"`id`"

        # Encoded: the program that runs commands on the machine may be systemd's, and put in values itself.
        encoded = base64.b64encode(revision.encode()).decode()
        output = server.machine.fails(f'{server.slug}-manage db upgrade "$(base64 -d <<< {encoded})"')

        assert f"Upgrading to {revision} ..." in output

    def test_what_the_service_stands_on_comes_back_when_it_is_killed(self, server: Server, token: str) -> None:
        created = create(server, token, "Before the crash")
        units = server.machine.run("systemctl list-units --plain --no-legend 'postgresql@*' | cut -d ' ' -f 1").split()

        # As often as systemd would otherwise give up.
        for unit in [*units, "nginx.service", "fail2ban.service"] * 6:
            kill_and_wait(server.machine, unit)

        server.site.wait()
        wait_until(lambda: all(is_served(server, token) for _ in range(20)), 60, lambda: "every request succeeds")
        assert created.json["title"] in server.titles(token)
        assert server.machine.run("systemctl is-system-running") == "running"
        assert len(units) == (server.project.answers["database"] == "postgresql")

    def test_everything_is_back_after_a_reboot(self, server: Server, token: str) -> None:
        created = create(server, token, "Survives a reboot")
        boot = server.machine.run("cat /proc/sys/kernel/random/boot_id")

        server.machine.reboot()

        server.site.wait()
        assert server.machine.run("cat /proc/sys/kernel/random/boot_id") != boot
        assert server.machine.run("systemctl is-system-running --wait") == "running"
        assert created.json["title"] in server.titles(token)
        assert "Status: active" in server.machine.run("ufw status")
        assert len(server.machine.run("journalctl --list-boots --no-pager").splitlines()) >= 2

    def test_backup_brings_everything_back_after_a_loss(self, server: Server, token: str) -> None:
        created = create(server, token, "Worth keeping")
        file_id = server.run_python(STORE_FILE, "as worthy")
        server.machine.run(f"systemctl start {server.slug}-backup.service")
        backup = server.machine.run(f"ls -t /var/backups/{server.slug}/{server.slug}-* | head -n 1")
        files = server.machine.run(f"ls -d /var/backups/{server.slug}/files/* | tail -n 1")
        server.machine.run(f"systemctl stop {server.slug}.target")
        destroy_database(server)
        server.machine.run(f"rm -r /var/lib/{server.slug}/files")

        server.machine.run(f"{server.slug}-manage db restore {backup} --yes")
        server.machine.run(f"{server.slug}-manage files restore {files}")

        server.machine.run(f"systemctl start {server.slug}.target")
        server.site.wait()
        assert created.json["title"] in server.titles(token)
        assert create(server, token, "After the loss").status == 201
        assert server.run_python(READ_FILE, file_id) == "as worthy"
        assert server.machine.run(f"stat -c '%a %U' {backup}") == f"600 {server.owner}"
        assert server.machine.run(f"systemctl is-active {server.slug}-backup.timer") == "active"


class ProcessTests(ServerTests):
    """What whoever keeps the workers alive has a part in."""

    def test_deployment_and_restart_under_load_fail_no_request(self, server: Server, token: str) -> None:
        release, instance = server.release, server.instance

        with Load(server.site, token) as load:
            deployed = server.deploy()
            restarted = server.deploy("restart")

        assert server.release > release
        assert server.release in deployed
        assert server.release in restarted
        assert server.instance == instance
        assert set(load.outcomes) == {("GET", 200), ("POST", 201)}, load.outcomes
        assert min(load.outcomes.values()) > 20
        assert server.machine.run(f"systemctl list-units --plain --no-legend '{server.slug}@*.service' | wc -l") == "1"

    def test_proxy_waits_longer_than_the_unit_and_the_unit_longer_than_the_workers(self, server: Server) -> None:
        proxy = re.findall(r"proxy_read_timeout (\d+)s;", server.machine.run("nginx -T 2>/dev/null"))
        unit = re.fullmatch(r"(\d+)s", server.unit_properties("TimeoutStopUSec")["TimeoutStopUSec"])

        assert unit
        assert min(map(int, proxy)) > int(unit[1]) > server.worker_stop_seconds()

    def test_reload_under_load_brings_new_code(self, server: Server, token: str) -> None:
        main, workers = server.wait_for_workers()
        code = f"/opt/{server.slug}/current/app/main.py"
        server.machine.run(f"cp -p {code} /root/main.py; echo {shlex.quote(TELL_OF_NEW_CODE)} >> {code}")

        with Load(server.site, token) as load:
            server.machine.run(f"systemctl reload {server.instance}")
            wait_until(lambda: not server.pids()[1] & workers, 60, lambda: "all workers are new")
            wait_until(lambda: count_new_code(server) == len(workers), 60, lambda: "all workers run the new code")
        server.machine.run(f"cp -p /root/main.py {code}")

        assert server.main_pid() == main
        failed = {outcome: count for outcome, count in load.outcomes.items() if outcome[1] not in {200, 201}}
        # A POST that meets a worker just as it ends is not repeated: for that there is `deploy.sh restart`.
        assert all(method == "POST" for method, _ in failed), failed
        assert sum(failed.values()) <= 2 * len(workers), failed

    def test_killed_worker_is_replaced(self, server: Server, token: str) -> None:
        main, workers = server.wait_for_workers()
        victim = min(workers)

        server.machine.run(f"kill -9 {victim}")

        wait_until(lambda: len(server.pids()[1] - {victim}) == len(workers), 30, lambda: "a new worker")
        assert server.main_pid() == main
        assert "Under" not in server.titles(token)

    def test_killed_master_is_replaced_and_requests_wait_meanwhile(self, server: Server) -> None:
        main = server.main_pid()
        restarts = server.restarts

        server.machine.run(f"kill -9 {main}")

        server.site.wait(30)
        wait_until(lambda: server.restarts == restarts + 1, 30, lambda: "systemd has restarted it")
        assert server.main_pid() != main

    def test_hung_worker_is_replaced(self, server: Server) -> None:
        _, workers = server.wait_for_workers()
        victim = min(workers)

        server.machine.run(f"kill -STOP {victim}")

        wait_until(lambda: victim not in server.pids()[1], 60, lambda: "the worker is replaced")
        wait_until(lambda: len(server.pids()[1]) == len(workers), 30, lambda: "a new worker")
        server.site.wait()

    def test_service_that_was_stopped_on_purpose_stays_stopped(self, server: Server) -> None:
        instance = server.instance
        server.machine.run(f"systemctl stop {server.slug}.target")

        result = server.unit_properties("Result", "ExecMainStatus")
        server.machine.run(f"systemctl start {server.slug}-health.service")

        assert result == {"Result": "success", "ExecMainStatus": "0"}
        assert server.machine.run(f"systemctl is-active {instance} || true") == "inactive"
        assert server.site.request("GET", "/api/v1/users/me").status == 503
        server.machine.run(f"systemctl start {server.slug}.target")
        server.site.wait()

    def test_counts_of_the_workers_add_up(self, server: Server) -> None:
        before = server.count_requests()

        statuses = [server.site.request("DELETE", "/api/v1/users/me").status for _ in range(10)]

        assert statuses == [401] * 10
        wait_until(lambda: server.count_requests() == before + 10, 30, lambda: "all are counted")
        assert [server.count_requests() - before for _ in range(10)] == [10] * 10

    def test_every_line_of_the_service_is_json(self, server: Server) -> None:
        # Of its last start, and not those that systemd has to say of the unit.
        run = f"_SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {server.instance})"

        lines = server.machine.run(f"journalctl {run} -o cat").splitlines()

        assert [json.loads(line) for line in lines]


class DeploymentTests(ProcessTests):
    def test_rollback_goes_to_the_release_before_and_five_are_kept(self, server: Server) -> None:
        releases = f"/opt/{server.slug}/releases"
        server.machine.run(
            f"for n in 1 2 3 4 5 6; do cp -Rl {releases}/{server.release} {releases}/20000101-00000$n; done"
        )
        before = server.release

        server.deploy()
        kept = server.machine.run(f"ls {releases}").split()
        after = server.release
        server.deploy("rollback")

        assert len(kept) == 5
        assert {before, after} <= set(kept)
        assert server.release == before
        assert f"* {before}" in server.deploy("status")

    def test_network_of_ipv6_is_limited_and_banned_as_one_client(
        self, server: Server, networks: tuple[list[str], list[str]]
    ) -> None:
        crowd, others = networks

        # One each: an address alone meets no limit.
        asked = ask_from(server, crowd[:40], "/api/v1/users", "--json", "{}")
        elsewhere = ask_from(server, others, "/api/v1/users", "--json", "{}")

        assert 429 in asked
        assert elsewhere == [422] * 3
        banned = "fail2ban-client get nginx-limit-req banip"
        wait_until(lambda: server.machine.run(banned) == "2001:db8:0:a::/64", 60, lambda: server.machine.run(banned))
        wait_until(lambda: ask_from(server, crowd[-1:], "/health") == [0], 60, lambda: "its last address is banned")
        assert ask_from(server, others, "/health") == [200] * 3

    def test_failed_sign_ins_of_a_network_of_ipv6_are_counted_together(
        self, server: Server, networks: tuple[list[str], list[str]]
    ) -> None:
        crowd, others = networks
        banned = "fail2ban-client get service banip"

        for client in crowd[:10]:
            ask_from(server, [client], TOKEN, *GUESS)
            # Slower than nginx's limit, which another jail watches.
            time.sleep(1.1)

        wait_until(lambda: server.machine.run(banned) == "2001:db8:0:a::/64", 60, lambda: server.machine.run(banned))
        wait_until(lambda: ask_from(server, crowd[-1:], "/health") == [0], 60, lambda: "its last address is banned")
        assert ask_from(server, others[:1], "/health") == [200]

    def test_connections_of_a_network_of_ipv6_leave_room_for_others(
        self, server: Server, networks: tuple[list[str], list[str]]
    ) -> None:
        crowd, others = networks
        program = f"python3 -c {shlex.quote(HOLD_CONNECTIONS)} {DOMAIN} {SITE_ADDRESS} {shlex.join(crowd[:45])}"
        ask = shlex.join(["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}\\n", "--interface"])
        url = f"--resolve {DOMAIN}:443:[{SITE_ADDRESS}] https://{DOMAIN}/health"

        refused, same, other = server.machine.run(
            f"""
            rm -f /root/count
            {program} > /root/count &
            timeout 120 bash -c 'until [[ -s /root/count ]]; do sleep 0.1; done'
            cat /root/count
            {ask} {crowd[-1]} {url}
            {ask} {others[0]} {url}
            kill %1
            """
        ).split()
        master = server.machine.run("systemctl show -P MainPID nginx")
        files = server.machine.run(
            f"for pid in $(pgrep -P {master} -f 'worker process$'); do grep '^Max open files' /proc/$pid/limits; done"
        )
        connections = re.findall(r"worker_connections (\d+);", server.machine.run("nginx -T 2>/dev/null"))

        assert (int(refused), same, other) == (90 - 50, "429", "200")
        assert connections == ["8192"]
        assert {line.split()[3] for line in files.splitlines()} == {"16384"}

    def test_page_of_another_site_uses_up_no_sign_in_of_its_visitor(
        self, server: Server, networks: tuple[list[str], list[str]]
    ) -> None:
        client = networks[1][0]
        sign_up = ("/api/v1/users", "--json", "{}")
        foreign = ("--header", "Sec-Fetch-Site: cross-site", "--header", "Origin: https://evil.example")

        from_page = ask_from(server, [client] * 60, *sign_up, *foreign)
        own = ask_from(server, [client] * 5, *sign_up)

        # The page has used up its own allowance: the header is no way round the limit.
        assert 429 in from_page
        assert own == [422] * 5
        assert client not in server.machine.run("cat /var/log/nginx/limited.log")

    def test_control_characters_in_a_path_are_refused(self, server: Server) -> None:
        paths = [f"{path}%{code}" for path in ("/metrics", "/health/ready", TOKEN) for code in ("0a", "0d", "01", "7f")]

        answers = [server.site.request("GET", path) for path in paths]

        assert [answer.status for answer in answers] == [400] * len(paths)
        assert server.site.request("GET", "/metrics.json").status == 404

    def test_form_that_no_route_needs_is_refused_before_the_service(self, server: Server) -> None:
        for path in (TOKEN, "/api/v1/auth/revoke"):
            refused = server.site.request("POST", path, {"password": "x" * 20_000}, form=True)
            answered = server.site.request("POST", path, {"password": "x" * 15_000}, form=True)

            # By nginx: the service gives each answer an id.
            assert (refused.status, refused.headers["X-Request-ID"]) == (413, None)
            assert answered.headers["X-Request-ID"]

    def test_longest_passwords_reach_the_service(self, server: Server) -> None:
        longest = "\N{PARTY POPPER}" * 1024
        change = {"current_password": longest, "new_password": longest}

        changed = server.site.request("POST", "/api/v1/users/me/password", change)
        signed_in = server.site.request("POST", TOKEN, {"username": EMAIL, "password": longest}, form=True)

        # nginx gives its refusals no id.
        assert changed.headers["X-Request-ID"]
        assert signed_in.headers["X-Request-ID"]

    def test_plain_http_refuses_what_should_not_have_been_sent(self, server: Server) -> None:
        def ask(method: str, path: str, **headers: str) -> tuple[int, str | None, bytes]:
            with closing(HTTPConnection(server.site.address, 80, timeout=20)) as connection:
                connection.request(method, path, headers={"Host": DOMAIN, **headers})
                response = connection.getresponse()
                return response.status, response.getheader("Content-Type"), response.read()

        refused = [
            ask("POST", TOKEN),
            ask("GET", f"{TODOS}?limit=1"),
            ask("GET", "/x/..%2fapi/v1/todos"),
            ask("POST", "/log-in"),
            ask("GET", "/", Authorization="Bearer secret"),
        ]

        assert {(status, media_type) for status, media_type, _ in refused} == {(403, "application/problem+json")}
        assert all("Use https." in json.loads(body)["detail"] for *_, body in refused)
        assert server.site.redirect_of("/log-in?next=%2F") == (308, f"https://{DOMAIN}/log-in?next=%2F")

    def test_browsers_are_told_of_subdomains_where_the_operator_says_so(self, server: Server) -> None:
        setting = "/etc/nginx/service/hsts.conf"
        seen = [server.site.request("GET", "/health").headers["Strict-Transport-Security"]]

        def is_changed() -> bool:
            seen.append(server.site.request("GET", "/health").headers["Strict-Transport-Security"])
            return seen[-1] != seen[0]

        server.machine.run(f"sed -i '/default/s/\";$/; includeSubDomains\";/' {setting}; systemctl reload nginx")
        try:
            wait_until(is_changed, 60, lambda: "nginx has reloaded")
        finally:
            server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")

        assert (seen[0], seen[-1]) == ("max-age=31536000", "max-age=31536000; includeSubDomains")

    def test_code_of_a_dependency_never_runs_as_root(self, server: Server, copy: str) -> None:
        base = f"/opt/{server.slug}"
        before = server.release
        for name, text in DEPENDENCY.items():
            written = text.replace("SLUG_FOLDER", base).replace("SLUG", server.slug)
            server.machine.run(f"install -d /srv/greedy; printf %s {shlex.quote(written)} > /srv/greedy/{name}")
        add = 's|^dependencies = \\[|&\\n    "greedy @ file:///srv/greedy",|'
        server.machine.run(f"sed -i {shlex.quote(add)} {copy}/pyproject.toml")

        server.deploy(folder=copy)

        server.machine.fails("ls /root/greedy")
        release = f"{base}/releases/{server.release}"
        built = json.loads(server.machine.run(f"cat {release}/.venv/lib/python3*/site-packages/built.json"))
        started = json.loads(server.machine.run(f"cat {release}/.build/started.json"))
        builder = int(server.machine.run(f"id -u {server.slug[:25]}-build"))
        assert built == started == {"user": builder, "done": []}
        assert server.machine.run(f"find {base}/ ! -user root") == ""
        assert server.machine.run(f"find {base}/ ! -type l -perm /7022") == ""
        server.deploy("rollback")
        server.machine.run(f"rm -rf {release} /srv/greedy")
        assert server.release == before

    def test_service_reaches_no_backup_and_no_credentials_of_the_cloud(self, server: Server) -> None:
        pid, group = server.main_pid(), f"$(systemctl show -P ControlGroup {server.instance})"
        inside = f'echo 0 > "/sys/fs/cgroup{group}/cgroup.procs"; exec'
        ask = "curl --silent --show-error --max-time 20 http://169.254.169.254:8000/"
        server.machine.run(f"systemctl start {server.slug}-backup.service")
        assert server.machine.run(f"ls /var/backups/{server.slug}") != ""
        assert server.machine.run(f"nsenter --mount --target {pid} ls /var/backups/{server.slug}") == ""
        server.machine.run(
            """
            ip address add 169.254.169.254/32 dev lo
            systemd-run --quiet --unit=metadata python3 -m http.server --bind 169.254.169.254 --directory /srv 8000
            timeout 60 bash -c 'until (: </dev/tcp/169.254.169.254/8000) 2>/dev/null; do sleep 0.1; done'
            """
        )
        try:
            outside = server.machine.run(ask)
            refused = server.machine.fails(f"{inside} {ask}")
        finally:
            server.machine.run("systemctl stop metadata; ip address del 169.254.169.254/32 dev lo")

        assert "Directory listing" in outside
        assert re.search(r"curl: \((7|28)\)", refused), refused

    def test_service_executes_nothing_that_it_can_write(self, server: Server) -> None:
        enter = f"nsenter --mount --target {server.main_pid()}"
        folders = f"/var/lib/{server.slug} /tmp /var/tmp /dev/shm"

        refused = server.machine.run(
            f"""
            for folder in {folders}; do
                {enter} cp /usr/bin/true $folder/program
                {enter} $folder/program 2>&1 || echo "exit $?"
                {enter} rm $folder/program
            done
            """
        )
        written = server.machine.fails(f"{enter} touch /usr/written /opt/{server.slug}/releases/written")
        assert refused.count("Permission denied") == len(folders.split())
        assert written.count("Read-only file system") == 2


class TestOnSQLite(ProcessTests):
    """Also the pages."""

    database = "sqlite"
    process_manager = "supervisor"
    answers: ClassVar[dict[str, str]] = {"web_pages": "yes"}

    def test_person_logs_in_on_a_page_with_cookies_for_tls_alone(self, server: Server) -> None:
        page = server.site.request("GET", "/log-in", headers=OF_A_BROWSER)
        (token,) = re.findall(r'name="csrf_token" value="([^"]+)"', page.body.decode())[-1:]
        form = {"csrf_token": token, "email": EMAIL, "password": PASSWORD}
        entered = server.site.request("POST", "/log-in", form, form=True, headers=OF_A_BROWSER | cookies_of(page))
        account = server.site.request("GET", "/account", headers=OF_A_BROWSER | cookies_of(entered))

        assert (entered.status, entered.headers["Location"]) == (303, "/")
        for cookie in [*page.headers.get_all("Set-Cookie", []), *entered.headers.get_all("Set-Cookie", [])]:
            assert cookie.startswith("__Host-")
            assert {"HttpOnly", "Path=/", "SameSite=lax", "Secure"} <= set(cookie.split("; "))
        assert account.status == 200
        assert EMAIL in account.body.decode()
        assert server.site.request("POST", "/log-in", form, form=True, headers=OF_A_BROWSER).status == 403

    def test_form_that_no_page_needs_is_refused_before_the_service(self, server: Server) -> None:
        refused = server.site.request("POST", "/todos", {"description": "x" * 170_000}, form=True)
        longest = server.site.request("POST", "/todos", {"description": "🎉" * 10_000}, form=True)
        by_api = server.site.request("POST", TODOS, {"description": "x" * 170_000})

        # By nginx: the service gives each answer an id.
        assert (refused.status, refused.headers["X-Request-ID"]) == (413, None)
        assert longest.headers["X-Request-ID"]
        assert (by_api.status, bool(by_api.headers["X-Request-ID"])) == (401, True)

    def test_nginx_serves_the_files_of_the_pages_and_speaks_while_the_service_is_stopped(self, server: Server) -> None:
        page = server.site.request("GET", "/log-in", headers=OF_A_BROWSER)
        (style,) = re.findall(r'href="(/static/pages\.[0-9a-f]{16}\.css)"', page.body.decode())
        code = uuid4().hex
        server.machine.run(f"systemctl stop {server.slug}.target")
        try:
            file = server.site.request("GET", style)
            refused = server.site.request("GET", "/todos", headers=OF_A_BROWSER)
            for name in ("reset-password", "verify-email"):
                server.site.request("GET", f"/{name}?token={code}", headers=OF_A_BROWSER)
        finally:
            server.machine.run(f"systemctl start {server.slug}.target")
            server.site.wait()

        # From the copy that the deployment made: nginx's cache would say so.
        assert (file.status, file.headers["X-Cache-Status"]) == (200, None)
        assert file.headers.get_all("Cache-Control") == ["public, max-age=31536000, immutable"]
        assert file.headers["Content-Type"].startswith("text/css")
        assert refused.status == 503
        assert refused.headers["Content-Type"].startswith("text/html")
        assert b"Out of reach for a moment" in refused.body
        # What a message holds is in no log.
        server.machine.run("grep 'request: \"GET /todos' /var/log/nginx/error.log")
        server.machine.fails(f"grep --recursive --fixed-strings {code} /var/log/nginx")


class TestOnDebian13(DeploymentTests):
    database = "postgresql"
    process_manager = "circus"
    release = "trixie"


class TestOnPostgreSQL(DeploymentTests):
    """Also what no database and no release of the system has a part in."""

    database = "postgresql"

    def test_database_grants_the_connections_of_two_instances(self, server: Server) -> None:
        pool = 10
        query = "SELECT setting, sourcefile FROM pg_settings WHERE name = 'max_connections'"

        granted, file = server.machine.run(f'cd /; runuser -u postgres -- psql -At -c "{query}"').split("|")

        assert file.endswith(f"/conf.d/{server.slug}.conf")
        assert int(granted) > 2 * pool * len(server.wait_for_workers()[1])

    def test_service_owns_neither_its_tables_nor_their_backups(self, server: Server) -> None:
        connect = f"cd /; PGPASSWORD=$DATABASE_PASSWORD psql -X -w -d {server.slug}"
        as_service = f"{connect} -h 127.0.0.1 -U {server.slug} -c"
        refused = {
            f"{connect} -U {server.owner}": "Peer authentication failed",
            f"{connect} -h 127.0.0.1 -U {server.owner}": "authentication failed",
            f"{as_service} 'SET ROLE \"{server.owner}\"'": "permission denied",
            f"{as_service} 'TRUNCATE audit_events'": "permission denied",
            f"{as_service} 'ALTER TABLE audit_events DISABLE TRIGGER ALL'": "must be owner",
            f"ls /var/backups/{server.slug}": "Permission denied",
            f"cat /etc/{server.slug}/owner": "Permission denied",
        }
        owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"

        server.machine.run(f"systemctl start {server.slug}-backup.service")
        for command, reason in refused.items():
            run = f"runuser -u {server.slug[:31]} -- bash -c {shlex.quote(command)} 2>&1"
            assert reason in server.machine.fails(f"set -a; . /etc/{server.slug}/env; {run}"), command
        purged = server.machine.run(f"{server.slug}-manage purge")

        assert server.machine.run(f'cd /; runuser -u postgres -- psql -At -c "{owners}" {server.slug}') == server.owner
        assert "Done: " in purged

    def test_certificate_of_the_database_is_verified_as_the_manual_says(self, server: Server) -> None:
        configuration, folder = f"/etc/{server.slug}/env", f"/etc/{server.slug}"
        key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
        server.machine.run(
            f"""
            cp -p {configuration} /root/env
            echo '127.0.0.1 database.vm.test' >> /etc/hosts
            mkdir /root/tls && cd /root/tls
            openssl req -x509 {key} -subj /CN=right -keyout right.key -out right.pem
            openssl req -x509 {key} -subj /CN=wrong -keyout wrong.key -out wrong.pem
            openssl req {key} -subj /CN=database.vm.test -keyout server.key -out server.csr
            openssl x509 -req -in server.csr -CA right.pem -CAkey right.key -CAcreateserial -out server.pem \\
                -extfile <(echo subjectAltName=DNS:database.vm.test)
            install -m 644 right.pem wrong.pem {folder}
            cluster=$(pg_lsclusters --no-header | awk '{{ print "/etc/postgresql/" $1 "/" $2 }}')
            install -o postgres -m 600 server.key server.pem "$cluster"
            printf "ssl_cert_file = '%s/server.pem'\\nssl_key_file = '%s/server.key'\\n" "$cluster" "$cluster" \\
                > "$cluster/conf.d/tls.conf"
            systemctl restart postgresql
            """
        )

        def connect(host: str, query: str) -> str:
            password = "$(sed -n 's/^DATABASE_PASSWORD=//p' /root/env)"
            url = f"postgresql://{server.slug}:{password}@{host}/{server.slug}?{query}"
            server.machine.run(f'cp -p /root/env {configuration}; echo "DATABASE_URL={url}" >> {configuration}')
            return server.machine.run(f"{server.slug}-manage db wait --timeout 0 2>&1 || true")

        verified = f"sslmode=verify-full&sslrootcert={folder}"
        try:
            right = connect("database.vm.test", f"{verified}/right.pem")
            of_another = connect("database.vm.test", f"{verified}/wrong.pem")
            of_another_name = connect("127.0.0.1", f"{verified}/right.pem")
            without = connect("database.vm.test", "sslmode=verify-full")
            server.machine.run("echo 'ssl = off' >> /etc/postgresql/*/*/conf.d/tls.conf; systemctl restart postgresql")
            unencrypted = connect("database.vm.test", f"{verified}/right.pem")
            by_default = connect("database.vm.test", "")
        finally:
            server.machine.run(
                f"""
                cp -p /root/env {configuration}
                sed -i /database.vm.test/d /etc/hosts
                rm -r /root/tls {folder}/right.pem {folder}/wrong.pem /etc/postgresql/*/*/conf.d/tls.conf
                systemctl restart postgresql
                """
            )

        assert "The database answers." in right
        assert "certificate verify failed" in of_another
        assert "does not match host name" in of_another_name
        assert "root.crt" in without
        assert "server does not support SSL" in unencrypted
        assert "The database answers." in by_default
        server.site.wait()

    def test_database_is_in_utf_8(self, server: Server) -> None:
        shown = server.machine.run(f"cd /; runuser -u postgres -- psql -At -c 'SHOW server_encoding' {server.slug}")

        assert shown == "UTF8"

    @pytest.mark.parametrize(
        "written",
        [
            "it's",
            '"it\'s \\"quoted\\" and \\\\ \\`id\\` $HOME"  ',
            "'single \"quotes\"'",
            "back\\\\slash # and no comment",
            "x' SUPERUSER; --",
            "first\nDATABASE_PASSWORD=last:'name' %h ÄÖ",
        ],
    )
    def test_password_of_the_role_is_what_the_service_reads(self, server: Server, written: str) -> None:
        configuration, manage = f"/etc/{server.slug}/env", f"{server.slug}-manage"
        server.machine.run(f"cp -p {configuration} /root/env")
        try:
            server.setting(f"DATABASE_PASSWORD={written}")
            provisioned = server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")
            checked = server.machine.run(f"{manage} db wait --timeout 0")
            again = server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")
        finally:
            server.machine.run(f"cp -p /root/env {configuration}; {PROJECT}/deploy/vm/provision.sh")

        superusers = server.machine.run(
            "cd /; runuser -u postgres -- psql -At -c 'SELECT rolname FROM pg_roles WHERE rolsuper'"
        )
        assert f"make the role {server.slug}" in provisioned
        assert "The database answers." in checked
        assert "Nothing changed" in again
        assert superusers == "postgres"
        server.site.wait()

    def test_password_that_is_missing_is_named(self, server: Server) -> None:
        configuration = f"/etc/{server.slug}/env"
        server.machine.run(f"cp -p {configuration} /root/env; echo DATABASE_PASSWORD= >> {configuration}")
        try:
            output = server.machine.fails(f"{PROJECT}/deploy/vm/provision.sh")
        finally:
            server.machine.run(f"cp -p /root/env {configuration}")

        assert f"DATABASE_PASSWORD in {configuration} must be set" in output

    def test_limits_of_the_unit_reach_the_service(self, server: Server) -> None:
        shown = server.unit_properties("MemoryMax", "TasksMax", "LimitNOFILE", "OOMPolicy", "Restart")
        memory = int(server.machine.run("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")) * 1024
        files = server.machine.run(f"sed -n 's/^Max open files *//p' /proc/{server.main_pid()}/limits")

        assert 0.79 < int(shown.pop("MemoryMax")) / memory < 0.81
        assert shown == {"TasksMax": "256", "LimitNOFILE": "16384", "OOMPolicy": "continue", "Restart": "always"}
        assert files.split()[:2] == ["16384", "16384"]

    def test_backups_and_logs_do_not_fill_the_disk(self, server: Server) -> None:
        backups, log = f"/var/backups/{server.slug}", "/var/log/nginx/access.log"
        server.machine.run(f"touch {backups}/{server.slug}-202001{{10..29}}T030000Z.dump")

        server.machine.run(f"systemctl start {server.slug}-backup.service")
        server.machine.run("logrotate --force /etc/logrotate.d/nginx")

        wait_until(
            lambda: server.site.answers() and '"path":"/health"' in server.machine.run(f"cat {log}"),
            60,
            lambda: "nginx writes to the new file",
        )
        kept = server.machine.run(f"cd {backups}; ls -d {server.slug}-*").split()
        journal = server.machine.run("journalctl -u systemd-journald -o cat | grep 'System Journal' | tail -n 1")
        assert len(kept) == 14
        assert max(kept) > f"{server.slug}-2026"
        assert server.machine.run(f"stat -c %a {log}.1 {log}").split() == ["640", "640"]
        assert "max 500.0M" in journal
        server.machine.run("systemctl is-active logrotate.timer")

    def test_provision_that_stops_says_where_and_the_next_one_completes_it(self, server: Server) -> None:
        provision = f"{PROJECT}/deploy/vm/provision.sh"
        server.machine.run("rm /etc/nginx/service/tls.conf; echo nonsense > /etc/nginx/conf.d/broken.conf")

        stopped = server.machine.fails(provision)
        served = server.site.answers()
        server.machine.run("rm /etc/nginx/conf.d/broken.conf")
        completed = server.machine.run(provision)

        assert "unknown directive" in stopped or "unexpected end of file" in stopped
        assert "could not reload nginx. When that is mended run it again" in stopped
        assert served
        assert "- reload nginx" in completed
        assert "Nothing changed" in server.machine.run(provision)

    def test_ssh_stays_reachable_on_whatever_port_it_has(self, server: Server, ssh_settings: tuple[str, str]) -> None:
        sshd, activation = ssh_settings

        server.machine.run(f"echo 'Port 2222' > {sshd}; systemctl restart ssh")
        as_configured = opened_by_provision(server, 2222)
        # It still listens there, and has another one after its next start.
        server.machine.run(f"ufw delete allow 2222/tcp; echo 'Port 2223' > {sshd}")
        as_it_is = opened_by_provision(server, 2222)
        server.machine.run(
            f"""
            rm {sshd}; systemctl stop ssh
            install -D /dev/stdin {activation} <<< $'[Socket]\nListenStream=2224'
            systemctl daemon-reload; systemctl start ssh.socket
            """
        )
        as_systemd_listens = opened_by_provision(server, 2224)

        assert (as_configured, as_it_is, as_systemd_listens) == (True, True, True)
        assert reaches(server.site.address, 22)

    def test_who_guesses_for_ssh_loses_all_ports_and_who_guesses_for_the_service_the_web(self, server: Server) -> None:
        rules = {}
        for jail in ("sshd", "service"):
            server.machine.run(f"fail2ban-client set {jail} banip 192.0.2.7")
            wait = f"until iptables -S INPUT | grep 'f2b-{jail}'; do sleep 0.1; done"
            rules[jail] = server.machine.run(f"timeout 60 bash -c {shlex.quote(wait)}")
            server.machine.run(f"fail2ban-client set {jail} unbanip 192.0.2.7")

        assert rules["sshd"] == "-A INPUT -p tcp -j f2b-sshd"
        assert rules["service"] == "-A INPUT -p tcp -m multiport --dports 80,443 -j f2b-service"

    def test_swap_is_made_only_where_it_can_be(self, server: Server) -> None:
        provision = f"{PROJECT}/deploy/vm/provision.sh --swap 64M"
        is_container = server.machine.run("systemd-detect-virt --container || true") != "none"

        planned = "" if is_container else server.machine.run(f"{provision} --dry-run")
        output = server.machine.fails(provision) if is_container else server.machine.run(provision)

        assert is_container or "- make a swap file of 64M" in planned
        assert ("--swap: this is a container" in output) == is_container
        assert ("/swapfile" in server.machine.run("cat /proc/swaps /etc/fstab")) != is_container

    def test_wrong_call_does_nothing(self, server: Server) -> None:
        release = server.release
        calls = ("deploy.sh rolback root@localhost", "deploy.sh --downgrade", "provision.sh --dryrun", "deploy.sh -x")

        outputs = [server.machine.fails(f"{PROJECT}/deploy/vm/{call}") for call in calls]
        meanwhile = server.machine.fails(f"flock /opt/{server.slug} {PROJECT}/deploy/vm/deploy.sh")

        assert all("Usage: " in output for output in outputs), outputs
        assert "another deployment is under way" in meanwhile
        # Nobody else can stand in the way.
        server.machine.fails(f"runuser -u nobody -- flock --nonblock /opt/{server.slug} true")
        assert server.release == release

    def test_address_that_the_operator_denies_is_refused(self, server: Server) -> None:
        server.site.request("GET", "/health")
        ours = json.loads(server.machine.run("tail -n 1 /var/log/nginx/access.log"))["client"]
        denied = "/etc/nginx/service/deny.conf"

        server.machine.run(f"cp {denied} /root/deny.conf; echo 'deny {ours};' >> {denied}; systemctl reload nginx")
        try:
            wait_until(lambda: server.site.request("GET", "/health").status == 403, 60, lambda: "we are refused")
            provisioned = server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")
        finally:
            server.machine.run(f"cp /root/deny.conf {denied}; systemctl reload nginx")
            # Workers of before may still take a connection.
            wait_until(lambda: all(server.site.answers() for _ in range(10)), 60, lambda: "we are let in again")

        assert "Nothing changed" in provisioned

    def test_every_command_of_the_operations_document_works(self, server: Server, token: str) -> None:
        document = server.project.read("docs/operations.md")
        commands = "".join(re.findall(r"(?ms)^```sh\n(.*?)^```", document)).splitlines()
        commands += re.findall(r"`(systemctl [^`]+)`", document)
        server.machine.run(f"systemctl start {server.slug}-backup.service")
        backup = server.machine.run(f"cd /var/backups/{server.slug}; ls -d {server.slug}-* | tail -n 1")
        files = server.machine.run(f"ls /var/backups/{server.slug}/files | tail -n 1")
        server.machine.run("fail2ban-client set service banip 203.0.113.7")
        # On the server itself; what follows the journal, or tells that something is not running, is ended and fine.
        meant = {" root@server.example.com": "", "/FILE ": f"/{backup} ", "/FOLDER": f"/{files}"}

        for line in commands:
            command = line
            for written, here in meant.items():
                command = command.replace(written, here)
            fine = {"journalctl": 124, "systemctl status": 3}
            ends = next((code for words, code in fine.items() if command.startswith(words)), 0)
            shell = f"timeout 540 bash -c {shlex.quote(command)}" if ends != 124 else f"timeout 3 {command}"
            server.machine.run(f"cd {PROJECT}; {shell} || [[ $? == {ends} ]]")

        assert len(commands) > 10
        server.site.wait()
        assert is_served(server, token)

    def test_forged_address_reaches_no_log(self, server: Server) -> None:
        forged = {"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6", "Forwarded": "for=6.6.6.6"}
        form = {"grant_type": "password", "username": "nobody@example.com", "password": "wrong password 123"}

        server.site.request("POST", TOKEN, form, form=True, headers=forged)

        lines = server.machine.run(f"journalctl -u '{server.slug}@*' -o cat | grep 'sign-in failed' | tail -n 1")
        ours = server.machine.run("tail -n 1 /var/log/nginx/access.log")
        assert json.loads(lines)["client"] == json.loads(ours)["client"] != "6.6.6.6"
        server.machine.fails("grep --recursive --fixed-strings 6.6.6.6 /var/log/nginx")

    def test_hung_service_is_restarted_by_the_health_timer(self, server: Server) -> None:
        main = server.main_pid()

        server.machine.run(f"systemctl kill --signal=STOP {server.instance}")

        wait_until(lambda: server.main_pid() not in {0, main}, 120, lambda: "the timer has restarted the service")
        server.site.wait()
        assert "restarting instance" in server.machine.run(f"journalctl -u {server.slug}-health -o cat --since=-5min")

    def test_restarted_database_is_found_again(self, server: Server, token: str) -> None:
        before = server.wait_for_workers()
        created = create(server, token, "Before the restart")

        server.machine.run("systemctl restart postgresql")

        # Each connection of the pools learns of it when it is used.
        wait_until(lambda: all(is_served(server, token) for _ in range(20)), 30, lambda: "the database is found again")
        assert created.json["title"] in server.titles(token)
        assert server.pids() == before

    def test_full_disk_of_the_logs_stops_no_request(self, server: Server, token: str) -> None:
        fill = "cat /dev/zero > {0}/fill 2>/dev/null || true"
        folders = ["/var/log/nginx", "/var/log/journal"]
        for folder in folders:
            server.machine.run(f"mount -t tmpfs -o size=1M none {folder}; {fill.format(folder)}; df {folder}")
        server.machine.run("nginx -s reopen; systemctl restart systemd-journald")

        try:
            assert [create(server, token, "The disk is full").status for _ in range(20)] == [201] * 20
            assert "100%" in server.machine.run("df /var/log/nginx")
        finally:
            server.machine.run(f"umount -l {' '.join(folders)}; nginx -s reopen; systemctl restart systemd-journald")
        server.site.wait()

    def test_deployment_is_refused_when_the_configuration_cannot_work(self, server: Server) -> None:
        release = server.release
        server.setting("ALLOWED_HOSTS=*")

        output = server.machine.fails(f"{PROJECT}/deploy/vm/deploy.sh")
        restart = server.machine.fails(f"{PROJECT}/deploy/vm/deploy.sh restart")

        server.machine.run(f"sed -i '$d' /etc/{server.slug}/env")
        for text in (output, restart):
            assert "ALLOWED_HOSTS: must not be *" in text
            assert "nothing was changed" in text
        assert server.release == release
        assert server.machine.run(f"ls /opt/{server.slug}/releases | grep -cx {release}") == "1"
        assert server.site.answers()

    def test_release_that_does_not_start_is_rolled_back_and_says_why(
        self, server: Server, copy: str, token: str
    ) -> None:
        release, instance = server.release, server.instance
        head = add_migration(server, copy)
        server.machine.run(f"echo 'raise RuntimeError(\"broken on purpose\")' >> {copy}/app/main.py")

        with Load(server.site, token) as load:
            output = server.machine.fails(f"{copy}/deploy/vm/deploy.sh")

        assert "broken on purpose" in output
        assert f"rolled back: {release} goes on serving" in output
        assert (server.release, server.instance) == (release, instance)
        assert {outcome[1] for outcome in load.outcomes} == {200, 201}, load.outcomes
        assert server.schema == head
        server.machine.run(f"ls /opt/{server.slug}/releases | grep -x {release}")
        assert "ready" in server.deploy("status")

    def test_release_that_cannot_take_over_leaves_the_old_one_serving(self, server: Server, token: str) -> None:
        release, instance = server.release, server.instance
        in_the_way = f"/etc/{server.slug}/active.sock.new"
        server.machine.run(f"mkdir {in_the_way}")

        output = server.machine.fails(f"{PROJECT}/deploy/vm/deploy.sh")
        server.machine.run(f"rm -r {in_the_way}")

        assert f"rolled back: {release} goes on serving" in output
        assert (server.release, server.instance) == (release, instance)
        assert is_served(server, token)
        assert server.machine.run(f"systemctl list-units --plain --no-legend '{server.slug}@*.service' | wc -l") == "1"

    def test_migration_that_fails_changes_nothing(self, server: Server, copy: str) -> None:
        release = server.release
        add_migration(server, copy)
        server.machine.run(
            f"sed -i 's/CREATE TABLE extra (id integer)/no SQL/' {copy}/migrations/versions/9999_extra.py"
        )

        output = server.machine.fails(f"{copy}/deploy/vm/deploy.sh")

        assert "the migration failed: the service goes on" in output
        assert server.release == release
        assert "ready" in server.deploy("status")

    def test_rollback_takes_the_schema_back_only_when_told_to(self, server: Server, copy: str, token: str) -> None:
        release = server.release
        head = add_migration(server, copy)
        # As with a umask that keeps everybody else out.
        server.machine.run(f"chmod -R go= {copy}")
        server.deploy(folder=copy)
        newer = server.release

        refusal = server.machine.fails(f"{PROJECT}/deploy/vm/deploy.sh rollback")
        output = server.deploy("rollback", "--downgrade")

        assert newer > release
        assert "needs an older schema" in refusal
        assert f"Rolled back: {release}" in output
        assert server.release == release
        assert server.schema == head
        assert create(server, token, "After the rollback").status == 201
        server.machine.run(f"rm -rf /opt/{server.slug}/releases/{newer}")

    def test_developer_deploys_over_ssh_and_is_not_locked_out(self, server: Server) -> None:
        server.machine.run(
            """
            useradd --create-home --shell /bin/bash developer
            echo 'developer ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/developer
            cp -R /root/project /home/developer/
            install -d -m 700 /home/developer/.ssh
            ssh-keygen -q -t ed25519 -N '' -f /home/developer/.ssh/id_ed25519
            cp /home/developer/.ssh/id_ed25519.pub /home/developer/.ssh/authorized_keys
            echo 'StrictHostKeyChecking accept-new' > /home/developer/.ssh/config
            chown -R developer: /home/developer
            """
        )
        over_ssh = "runuser -u developer -- env -C /home/developer/project deploy/vm/{} developer@localhost"

        provisioned = server.machine.run(over_ssh.format("provision.sh"))
        release = server.release
        deployed = server.machine.run(over_ssh.format("deploy.sh"))
        status = server.machine.run(over_ssh.format("deploy.sh status"))

        assert "Nothing changed" in provisioned
        assert server.release > release
        assert server.release in deployed
        assert f"* {server.release}" in status
        assert server.machine.run("ls -d /tmp/tmp.* 2>/dev/null || true") == ""
        server.machine.run("userdel --force --remove developer 2>/dev/null; rm /etc/sudoers.d/developer")

    def test_firewall_closes_every_other_port(self, server: Server) -> None:
        server.machine.run("systemd-run --quiet --unit=open-port python3 -m http.server 8000")
        server.machine.run("timeout 60 bash -c 'until (: </dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.1; done'")
        address = server.site.address

        closed = [reaches(address, port) for port in (5432, 8000)]
        server.machine.run("ufw --force disable")
        opened = reaches(address, 8000)
        server.machine.run("ufw --force enable; systemctl stop open-port")

        assert closed == [False, False]
        assert opened
        assert [reaches(address, port) for port in (22, 80, 443)] == [True] * 3

    def test_who_fails_to_sign_in_again_and_again_is_banned(self, server: Server) -> None:
        form = {"grant_type": "password", "username": EMAIL, "password": "wrong password 123"}

        def offend() -> None:
            for _ in range(10):
                server.site.request("POST", TOKEN, form, form=True)
                # Slower than nginx's limit, which another jail watches.
                time.sleep(1.1)

        server.site.request("GET", "/health")
        try:
            banned_until_unbanned(server, "service", offend)
        finally:
            server.machine.run("fail2ban-client reload --unban")

    def test_who_hammers_is_banned(self, server: Server) -> None:
        form = {"grant_type": "password", "username": EMAIL, "password": "short"}

        def offend() -> None:
            statuses = [server.site.request("POST", TOKEN + "x", form, form=True).status for _ in range(3)]
            statuses += [server.site.request("POST", "/api/v1/users", {}).status for _ in range(40)]
            assert 429 in statuses

        server.site.request("GET", "/health")
        try:
            banned_until_unbanned(server, "nginx-limit-req", offend)
        finally:
            server.machine.run("fail2ban-client reload --unban")

    def test_certificate_comes_by_itself_once_the_name_leads_here_and_is_renewed(
        self, server: Server, acme_root: str
    ) -> None:
        trusting_it = Site(server.site.address, DOMAIN, acme_root)
        self_signed = serial_of(server)

        provisioned = server.machine.run(f"{PROJECT}/deploy/vm/provision.sh --email {EMAIL}")
        trusting_it.wait()
        contact = server.machine.run("certbot show_account")
        # As before the name led here.
        server.machine.run(
            f"""
            rm -r /etc/letsencrypt/{{archive,live,renewal}}
            ln -sfn /etc/{server.slug}/self-signed /etc/{server.slug}/tls
            systemctl start {server.slug}-certificate.service
            """
        )
        trusting_it.wait()
        issued = serial_of(server)
        server.machine.run("certbot renew --quiet --force-renewal --no-random-sleep-on-renew")
        wait_until(
            lambda: serial_of(server) not in {self_signed, issued}, 60, lambda: "nginx serves the renewed certificate"
        )

        assert "does not lead to this server yet" in server.outputs["first"]
        assert "has a certificate of a certificate authority" in provisioned
        assert EMAIL in contact
        assert issued != self_signed
        assert trusting_it.answers()
        assert "Nothing changed" in server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")
        assert server.machine.run("systemctl is-active certbot.timer") == "active"
