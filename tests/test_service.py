"""Each baked project, used as its user would: these tests take minutes."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import nasty
from tests.conftest import WITHOUT_PROCESSES, Bake, BakedProject, person_environment
from tests.serving import RunningServer, serve

pytestmark = pytest.mark.slow

ANSWERS = {
    "postgresql": {},
    # Whatever a person types, the project's own checks and tests pass.
    "sqlite": {
        "project_name": nasty.ACCEPTED["backslash-and-quotes"] + nasty.ACCEPTED["emoji-of-parts"],
        "description": nasty.ACCEPTED["assignment"] + nasty.ACCEPTED["percent"] + nasty.ACCEPTED["dollar"],
        "author_name": nasty.ACCEPTED["ampersand-and-angles"] + nasty.ACCEPTED["backslash-at-the-end"],
        "project_slug": "nasty-answers",
        "license": "Proprietary",
        "web_pages": "yes",
        "weather_example": "yes",
        "process_manager": "supervisor",
    },
}
PYTHON = ".venv/bin/python"
WITH_DATABASE = {"postgresql": [PYTHON, "-m", "scripts.embedded_postgres"], "sqlite": []}
# These commands of a README serve until they are stopped.
SERVING = ("make run", "uv run python -m app serve", "./start.sh", "./start-reload.sh")
# Where the service's own tests start what keeps its workers alive.
MANAGED = ("keeper", "processes", "sockets", "startup", "throttled_workers")
TESTED_ABOVE = ("make check", "make test", "make check test")
PASSWORD = "correct horse battery staple"


def log_in(server: RunningServer, email: str) -> str:
    form = {"grant_type": "password", "username": email, "password": PASSWORD}
    answer = server.request("POST", "/api/v1/auth/token", form, form=True)
    assert answer.status == 200, answer.body
    token: str = answer.json["access_token"]
    return token


@pytest.fixture(scope="class")
def service(request: pytest.FixtureRequest, bake: Bake) -> BakedProject:
    database = request.cls.database
    project = bake(database=database, **ANSWERS[database])
    project.run(["make", "install"])
    return project


class ServiceTests:
    """One class for each database, so that pytest-xdist gives each to one worker, which installs it once."""

    database: str

    def test_style_types_and_architecture_are_clean(self, service: BakedProject) -> None:
        service.run(["make", "check"])

    def test_its_own_tests_pass(self, service: BakedProject) -> None:
        output = service.run(["make", "test"])

        assert re.search(r"\d+ passed", output), output
        assert "Required test coverage of 95.0% reached" in output, output

    def test_migrations_go_up_down_and_up_without_drift(self, service: BakedProject) -> None:
        for verb in (["upgrade"], ["check"], ["downgrade", "base"], ["upgrade"], ["check"]):
            service.run([*WITH_DATABASE[self.database], PYTHON, "-m", "app", "db", *verb])

    def test_person_signs_up_logs_in_and_keeps_todos(self, service: BakedProject) -> None:
        # A machine that pauses is no failure.
        with serve(["make", "run"], service.path, READINESS_TIMEOUT_SECONDS="60") as server:
            account = {"email": "ada@example.com", "password": PASSWORD}
            assert server.request("POST", "/api/v1/users", account).status == 201
            token = log_in(server, "ada@example.com")

            created = server.request("POST", "/api/v1/todos", {"title": "Write a test"}, token=token)
            todos = server.request("GET", "/api/v1/todos", token=token)

            assert created.status == 201
            assert [todo["title"] for todo in todos.json["items"]] == ["Write a test"]
            assert server.request("GET", "/health/ready").status == 200
            server.stop(signal.SIGINT, group=True)

        installed = (service.path / ".venv" / ".installed").stat().st_mtime_ns
        with serve(["make", "run"], service.path) as server:
            assert server.seconds_to_start < 60
            assert (service.path / ".venv" / ".installed").stat().st_mtime_ns == installed
            todos = server.request("GET", "/api/v1/todos", token=log_in(server, "ada@example.com"))
            assert [todo["title"] for todo in todos.json["items"]] == ["Write a test"]
            server.stop(signal.SIGINT, group=True)

    @pytest.mark.parametrize(
        "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda n: n.name
    )
    def test_nothing_is_left_behind_when_make_run_ends(self, service: BakedProject, number: signal.Signals) -> None:
        with serve(["make", "run"], service.path) as server:
            server.stop(number, group=number != signal.SIGKILL)

        service.run([*WITH_DATABASE[self.database], PYTHON, "-m", "app", "db", "check"])

    def test_every_command_of_the_readme_works(self, bake: Bake, tmp_path: Path) -> None:
        project = bake(database=self.database)
        subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
        path = [str(project.path / ".venv" / "bin"), str(tmp_path / "bin"), person_environment()["PATH"]]
        readme = project.read("README.md")
        blocks = "".join(re.findall(r"(?ms)^```(?:sh|console)\n(.*?)^```", readme)).splitlines()

        for line in [*blocks, *re.findall(r"`((?:make|uv) [^`]+)`", readme)]:
            command = line.partition(" #")[0].strip()
            # make brings a database; the rest is given one. `copy` and `set` are for Windows; `set` does nothing here.
            database = [] if command.startswith("make") else WITH_DATABASE[self.database]
            script = [*database, "sh", "-ec", f'copy() {{ cp "$@"; }}; {command}']
            if command in SERVING:
                with serve(script, project.path, PATH=":".join(path)) as server:
                    server.stop(signal.SIGINT, group=True)
            elif command not in TESTED_ABOVE:
                project.run(script, PATH=":".join(path))


class TestOnPostgreSQL(ServiceTests):
    database = "postgresql"


class TestOnSQLite(ServiceTests):
    database = "sqlite"


class TestOnCircus:
    def test_its_checks_and_its_tests_of_processes_pass(self, bake: Bake) -> None:
        project = bake(database="sqlite", process_manager="circus")
        project.run(["make", "check"])

        output = project.run([PYTHON, "-m", "pytest", "-n", "auto", *(f"tests/test_{name}.py" for name in MANAGED)])

        assert re.search(r"\d+ passed", output), output


class TestWithoutTodos:
    def test_sample_feature_can_be_deleted(self, bake: Bake) -> None:
        project = bake(database="sqlite", web_pages="yes")
        lists = {name: project.read(name).splitlines(keepends=True) for name in ("app/api.py", "app/web/feature.py")}
        kept = {name: [line for line in lines if "todos" not in line] for name, lines in lists.items()}
        (migration,) = (project.path / "migrations" / "versions").glob("*todos*.py")

        shutil.rmtree(project.path / "app" / "todos")
        shutil.rmtree(project.path / "app" / "web" / "todos")
        for test in (project.path / "tests").glob("*todos*"):
            test.unlink()
        migration.unlink()
        for name, lines in kept.items():
            (project.path / name).write_text("".join(lines), encoding="utf-8")

        assert [len(lists[name]) - len(kept[name]) for name in lists] == [2, 2]
        project.run(["make", "check", "test"], PYTEST_ADDOPTS=WITHOUT_PROCESSES)
