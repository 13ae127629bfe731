"""The service behind a real pgbouncer with two connections, set up as docs/postgresql.md describes."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from tests.support.programs import end_group, person_environment, run_program
from tests.support.projects import Bake, BakedProject
from tests.support.serving import find_free_port, serve, wait_until

pytestmark = [pytest.mark.pooler, pytest.mark.slow]

PROGRAMS = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
TIMEOUT_SECONDS = 60
# More executions than psycopg needs before it prepares a statement.
REQUESTS = 60
ACCOUNT = {"email": "ada@example.com", "password": "correct horse battery staple"}
SHARED_CONNECTIONS = 2
CONFIGURATION = f"""
[databases]
postgres = host={{socket}} user=postgres

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {{port}}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {SHARED_CONNECTIONS}
"""


@dataclass(frozen=True)
class Database:
    project: BakedProject
    url: str
    pooler_port: int

    @property
    def pooler_url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.pooler_port}/postgres"

    def manage(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "app", "db", *arguments]
        environment = person_environment(PATH=PROGRAMS, **variables)
        return run_program(command, TIMEOUT_SECONDS, folder=self.project.path, env=environment)


@contextmanager
def run_in_background(command: Sequence[str], folder: Path) -> Iterator["subprocess.Popen[str]"]:
    environment = person_environment(PATH=PROGRAMS)
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        end_group(process)
        assert process.stdout
        process.stdout.close()


@pytest.fixture(scope="module")
def database(bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    project = bake()
    folder = tmp_path_factory.mktemp("pgbouncer")
    serve_postgres = ["-m", "scripts.embedded_postgres", "sh", "-c", 'echo "$DATABASE_URL"; exec sleep 3600']
    with run_in_background([sys.executable, *serve_postgres], project.path) as postgres:
        assert postgres.stdout
        url = postgres.stdout.readline().strip()
        port = find_free_port()
        configuration = CONFIGURATION.format(socket=url.partition("host=")[2], port=port)
        (folder / "pgbouncer.ini").write_text(configuration, encoding="utf-8")
        # pgbouncer refuses to run as root, so a user namespace maps root to another id.
        prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
        with run_in_background([*prefix, "pgbouncer", "--quiet", "pgbouncer.ini"], folder):
            found = Database(project, url, port)
            wait_until(lambda: answers(found.pooler_url), TIMEOUT_SECONDS, lambda: "pgbouncer answers")
            follow_the_manual(found)
            done = found.manage("upgrade", DATABASE_URL=url)
            assert done.returncode == 0, done.stdout
            yield found


def answers(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def follow_the_manual(database: Database) -> None:
    (section,) = re.findall(r"(?ms)^## A pooler$(.*)", database.project.read("docs/postgresql.md"))
    (statements,) = re.findall(r"(?ms)^```sql\n(.*?)^```", section)
    with psycopg.connect(database.url, autocommit=True) as connection:
        for statement in statements.replace("ROLE service", "ROLE postgres").splitlines():
            connection.execute(statement.encode())


def test_service_works_on_pooled_connections(database: Database) -> None:
    settings = {
        "DATABASE_URL": database.url,
        "DATABASE_POOLER_HOST": "127.0.0.1",
        "DATABASE_POOLER_PORT": str(database.pooler_port),
        "UPDATE_DB": "1",
        "WEB_CONCURRENCY": "2",
        # A machine that pauses must not fail the test.
        "DATABASE_POOL_TIMEOUT_SECONDS": "60",
        "READINESS_TIMEOUT_SECONDS": "60",
    }
    with serve(["./start.sh"], database.project.path, PATH=PROGRAMS, **settings) as server:
        created = server.request("POST", "/api/v1/users", ACCOUNT)
        form = {"grant_type": "password", "username": ACCOUNT["email"], "password": ACCOUNT["password"]}
        token = server.request("POST", "/api/v1/auth/token", form, form=True).json["access_token"]

        def add_and_look(number: int) -> list[int]:
            added = server.request("POST", "/api/v1/todos", {"title": f"Todo {number}"}, token=token)
            path = f"/api/v1/todos/{added.json['id']}"
            changed = server.request("PATCH", path, {"title": "Changed"}, token=token)
            listed = server.request("GET", "/api/v1/todos?limit=3", token=token)
            return [added.status, changed.status, listed.status]

        with ThreadPoolExecutor(8) as threads:
            statuses = list(threads.map(add_and_look, range(REQUESTS)))
        ready = server.request("GET", "/health/ready")
        connections = count_connections(database)
        log = server.read_log()

    assert created.json["created_at"].endswith("Z")
    assert statuses == [[201, 200, 200]] * REQUESTS, log
    assert ready.status == 200
    assert connections <= SHARED_CONNECTIONS


def count_connections(database: Database) -> int:
    with psycopg.connect(database.url) as connection:
        others = (
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        (count,) = connection.execute(others).fetchone() or (0,)
        return int(count)


def test_service_is_not_ready_if_the_pooler_is_not_configured(database: Database) -> None:
    with serve(["./start.sh"], database.project.path, PATH=PROGRAMS, DATABASE_URL=database.pooler_url) as server:
        assert server.request("GET", "/health/ready").status == 503


def test_migrations_and_backups_bypass_the_pooler(database: Database, tmp_path: Path) -> None:
    # Nothing listens on this port: a connection to the pooler would fail.
    settings = {"DATABASE_URL": database.url, "DATABASE_POOLER_HOST": "127.0.0.1", "DATABASE_POOLER_PORT": "1"}

    for arguments in (
        ["upgrade"],
        ["backup", str(tmp_path / "backup")],
        ["restore", str(tmp_path / "backup"), "--yes"],
    ):
        done = database.manage(*arguments, **settings)
        assert done.returncode == 0, done.stdout
