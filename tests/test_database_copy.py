"""`db copy` between the two kinds of databases, as docs/change-database.md describes it."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from tests.support.database_rows import FILL_TABLES, PRINT_ROWS
from tests.support.programs import UV, end_group, person_environment, run_program
from tests.support.projects import Bake, BakedProject
from tests.support.serving import RunningServer, serve

pytestmark = pytest.mark.slow

TIMEOUT_SECONDS = 300
ROWS = 40
MANY_ROWS = 20_000
ADD_EVENTS = """
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)
    INSERT INTO audit_events (id, event, device, details, created_at)
    SELECT lower(hex(randomblob(16))), 'an event', '', json_quote(hex(zeroblob(1000))), '2026-01-02 03:04:05'
    FROM numbers
"""
COPY_AND_PRINT_PEAK = """
import resource, sys
from app.cli import cli

cli(["db", "copy", sys.argv[1]], standalone_mode=False)
print("peak in KiB:", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
ACCOUNT = {"email": "ada@example.com", "password": "correct horse battery staple"}
SIGN_IN = {"grant_type": "password", "username": ACCOUNT["email"], "password": ACCOUNT["password"]}
# The addresses of the sources in the manual.
FILE_IN_MANUAL = "sqlite:////var/lib/old/service.sqlite3"
SERVER_IN_MANUAL = "postgresql://service@old.example.com/service"
PASSWORD_IN_MANUAL = "/run/old/password"


@dataclass(frozen=True)
class Database:
    """A new database of a project that the test's own interpreter runs, which has both drivers."""

    project: BakedProject
    url: str

    def run(self, *arguments: str, status: int = 0, **variables: str) -> str:
        command = [sys.executable, *arguments]
        environment = person_environment(PYTHONDONTWRITEBYTECODE="1", DATABASE_URL=self.url, **variables)
        done = run_program(command, TIMEOUT_SECONDS, folder=self.project.path, env=environment)
        assert done.returncode == status, done.stdout[-20000:]
        return done.stdout

    def manage(self, *arguments: str, status: int = 0, **variables: str) -> str:
        return self.run("-m", "app", "db", *arguments, status=status, **variables)

    def list_rows(self) -> list[str]:
        return self.run("-c", PRINT_ROWS).splitlines()


def read_checksums(output: str) -> dict[str, tuple[str, str]]:
    found = re.findall(r"(?m)^(\w+): ([\d,]+) rows, checksum ([0-9a-f]{16})$", output)
    return {table: (rows, checksum) for table, rows, checksum in found}


def read_peak(output: str) -> int:
    return int(output.rpartition("peak in KiB: ")[2])


@pytest.fixture(scope="module")
def with_file(bake: Bake) -> BakedProject:
    return bake(database="sqlite")


@pytest.fixture(scope="module")
def with_server(bake: Bake) -> BakedProject:
    return bake(database="postgresql")


@pytest.fixture(scope="module")
def server_url(with_server: BakedProject) -> Iterator[str]:
    """The URL of a server for the tests of this module."""
    command = [sys.executable, "-m", "scripts.embedded_postgres", "sh", "-c", 'echo "$DATABASE_URL"; exec sleep 3600']
    environment = person_environment(PYTHONDONTWRITEBYTECODE="1")
    with subprocess.Popen(
        command, cwd=with_server.path, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout
            yield process.stdout.readline().strip()
        finally:
            end_group(process)


@pytest.fixture
def file(with_file: BakedProject, tmp_path: Path) -> Database:
    database = Database(with_file, f"sqlite:///{tmp_path / 'service.db'}")
    database.manage("upgrade")
    return database


@pytest.fixture
def new_url(server_url: str) -> Iterator[str]:
    name = f"copy_{uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        yield server_url.replace("/postgres?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def server(with_server: BakedProject, new_url: str) -> Database:
    database = Database(with_server, new_url)
    database.manage("upgrade")
    return database


def test_rows_of_every_table_are_the_same_there_and_back(
    file: Database, server: Database, with_file: BakedProject, tmp_path: Path
) -> None:
    file.run("-c", FILL_TABLES, str(ROWS))
    back = Database(with_file, f"sqlite:///{tmp_path / 'back.db'}")
    back.manage("upgrade")
    rows = file.list_rows()

    there = read_checksums(server.manage("copy", file.url))
    again = read_checksums(back.manage("copy", server.url))

    assert len(rows) == ROWS * len(there)
    assert {count for count, _ in there.values()} == {str(ROWS)}
    assert server.list_rows() == rows
    assert back.list_rows() == rows
    assert again == there


def test_changed_row_has_another_checksum(file: Database, server: Database, tmp_path: Path) -> None:
    file.run("-c", FILL_TABLES, "2")
    before = read_checksums(server.manage("copy", file.url))
    with psycopg.connect(server.url) as connection:
        connection.execute("UPDATE users SET name = name || ' ' WHERE id = (SELECT min(id::text)::uuid FROM users)")
    back = Database(file.project, f"sqlite:///{tmp_path / 'back.db'}")
    back.manage("upgrade")

    after = read_checksums(back.manage("copy", server.url))

    assert {name for name in before if after[name] != before[name]} == {"users"}


def test_memory_does_not_depend_on_the_number_of_rows(file: Database, server: Database) -> None:
    few = read_peak(server.run("-c", COPY_AND_PRINT_PEAK, file.url))
    with closing(sqlite3.connect(file.url.removeprefix("sqlite:///"))) as connection:
        connection.execute(ADD_EVENTS, [MANY_ROWS])
        connection.commit()

    output = server.run("-c", COPY_AND_PRINT_PEAK, file.url)

    assert f"audit_events: {MANY_ROWS:,} rows" in output
    # The rows alone take 40 MB.
    assert read_peak(output) - few < 20_000


def test_missing_driver_is_named_with_the_command_that_adds_it(file: Database, server: Database) -> None:
    """Both drivers are installed here, so a module that cannot be found stands for the missing one."""
    hide = "import sys; sys.modules['psycopg'] = None; from app.cli import cli; cli(['db', 'copy', sys.argv[1]])"

    refused = file.run("-c", hide, server.url, status=1)

    assert "uv run --with 'psycopg[binary]' python -m app db copy" in refused


def test_values_that_only_one_kind_of_database_stores_are_refused(
    file: Database, server: Database, tmp_path: Path
) -> None:
    server.run("-c", FILL_TABLES, "2")
    with psycopg.connect(server.url) as connection:
        connection.execute(
            "UPDATE throttle_counts SET last_at = 'NaN' WHERE key = (SELECT min(key) FROM throttle_counts)"
        )

    refused = file.manage("copy", server.url, status=1)

    assert re.search(r"throttle_counts, key=\S+: last_at is NaN, which SQLite cannot store", refused)
    assert file.list_rows() == []


def read_commands(project: BakedProject, source: str) -> str:
    """Return the commands of the manual that copy from the address `source`."""
    blocks = re.findall(r"(?ms)^   ```sh\n(.*?)^   ```", project.read("docs/change-database.md"))
    (commands,) = [block for block in blocks if source in block]
    return str(commands)


def install(project: BakedProject, baked: BakedProject) -> None:
    """Write the new files over the old ones, as an update does, and install the dependencies; `.env` stays."""
    shutil.copytree(baked.path, project.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".env"))
    project.run(["make", "install"], PATH=f"{Path(UV).parent}:{os.environ['PATH']}")


def list_titles(server: RunningServer) -> list[str]:
    token = server.request("POST", "/api/v1/auth/token", SIGN_IN, form=True).json["access_token"]
    return sorted(todo["title"] for todo in server.request("GET", "/api/v1/todos", token=token).json["items"])


def test_people_sign_in_after_the_commands_of_the_manual(bake: Bake, new_url: str, tmp_path: Path) -> None:
    """The project moves from a file to a server, and back to another file."""
    project = bake(database="sqlite")
    project.run(["make", "install"], PATH=f"{Path(UV).parent}:{os.environ['PATH']}")
    start = [".venv/bin/python", "-m", "app", "serve"]
    old, new = (f"sqlite:///{tmp_path / name}" for name in ("old.sqlite3", "new.sqlite3"))
    with serve(start, project.path, DATABASE_URL=old, UPDATE_DB="1") as service:
        service.request("POST", "/api/v1/users", ACCOUNT)
        token = service.request("POST", "/api/v1/auth/token", SIGN_IN, form=True).json["access_token"]
        for title in ("first", "zweite 👩‍🚀"):
            assert service.request("POST", "/api/v1/todos", {"title": title}, token=token).status == 201
        titles = list_titles(service)
    # As if the new files came with a migration that the old database lacks.
    project.run([*start[:3], "db", "downgrade", "-1"], DATABASE_URL=old)
    (tmp_path / "password").write_text("unused")
    uv = {"PATH": f"{Path(UV).parent}:{os.environ['PATH']}"}

    install(project, bake(database="postgresql"))
    there = read_commands(project, FILE_IN_MANUAL).replace(FILE_IN_MANUAL, old)
    refused = project.run(["sh", "-uc", f"{there}\ntrue"], DATABASE_URL=new_url, **uv)
    (upgrade,) = re.findall(r"run `(uv run --with .* db upgrade)`", refused)
    project.run(["sh", "-euc", upgrade], DATABASE_URL=old, **uv)
    project.run(["sh", "-euc", there], DATABASE_URL=new_url, **uv)
    with serve(start, project.path, DATABASE_URL=new_url) as service:
        on_server = list_titles(service)

    install(project, bake(database="sqlite"))
    back = read_commands(project, SERVER_IN_MANUAL).replace(SERVER_IN_MANUAL, f"'{new_url}'")
    back = back.replace(PASSWORD_IN_MANUAL, str(tmp_path / "password"))
    project.run(["sh", "-euc", back], DATABASE_URL=new, **uv)
    with serve(start, project.path, DATABASE_URL=new) as service:
        in_new_file = list_titles(service)

    assert len(titles) == 2
    assert on_server == titles
    assert in_new_file == titles
