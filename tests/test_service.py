"""Baked projects, used as a developer uses them. These tests take minutes."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import nasty
from tests.support.programs import UV, person_environment
from tests.support.projects import Bake, BakedProject
from tests.support.serving import RunningServer, serve
from tests.support.walkthrough import read_steps
from tests.update.teams import bake_team, commit_all, copy_template, run_git

pytestmark = pytest.mark.slow

ANSWERS = {
    "postgresql": {},
    # Hostile texts: the project's own checks and tests must pass with any answer.
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
RUN_DATABASE = {"postgresql": [PYTHON, "-m", "scripts.embedded_postgres"], "sqlite": []}
# Commands of the README that serve until they are stopped.
SERVING = ("make run", "uv run python -m app serve", "./start.sh", "./start-reload.sh")
# The service's test modules that start a process manager.
MANAGED = (
    "tests/core/process/test_monitor.py",
    "tests/core/process/test_leaving.py",
    "tests/core/process/test_processes.py",
    "tests/core/process/test_sockets.py",
    "tests/core/security/test_throttled_workers.py",
    "tests/test_startup.py",
)
TESTED_ELSEWHERE = (
    # Names of targets in sentences, without the values that the targets need.
    "make resource",
    "make field",
    "make remove",
    "make check",
    "make test",
    "make test-all",
    "make check test",
    'make migrate m="remove the samples"',
)
PASSWORD = "correct horse battery staple"
# The last command for the removal of a feature, and tests that stand for all tests on one of the databases.
ALL_CHECKS = "make check test"
FEW_TESTS = "tests/core/db/test_migrations.py tests/test_docs.py tests/test_attacks.py tests/notes tests/books"


def sign_in(server: RunningServer, email: str) -> str:
    form = {"grant_type": "password", "username": email, "password": PASSWORD}
    answer = server.request("POST", "/api/v1/auth/token", form, form=True)
    assert answer.status == 200, answer.body
    token: str = answer.json["access_token"]
    return token


@pytest.fixture(scope="class")
def service(request: pytest.FixtureRequest, bake: Bake, tmp_path_factory: pytest.TempPathFactory) -> BakedProject:
    database = request.cls.database
    baked = bake(database=database, **ANSWERS[database])
    # The project and uv are in a folder whose name holds spaces, quotes and other special characters.
    folder = tmp_path_factory.mktemp(nasty.DATABASE_FOLDER if database == "postgresql" else nasty.FOLDER)
    shutil.move(baked.path, folder)
    project = BakedProject(folder / baked.path.name, baked.answers)
    (folder / "bin").mkdir()
    (folder / "bin" / "uv").symlink_to(UV)
    project.run(["make", "install"], PATH=f"{folder / 'bin'}:{os.environ['PATH']}")
    return project


class ServiceTests:
    """One subclass for each database: pytest-xdist gives a class to one worker, which installs the project once."""

    database: str

    def test_style_types_and_architecture_are_clean(self, service: BakedProject) -> None:
        service.run(["make", "check"])

    def test_own_tests_pass(self, service: BakedProject) -> None:
        output = service.run(["make", "test-all"])

        assert re.search(r"\d+ passed", output), output
        assert "Required test coverage of 95.0% reached" in output, output

    def test_migrations_go_up_down_and_up_without_drift(self, service: BakedProject) -> None:
        for verb in (["upgrade"], ["check"], ["downgrade", "base"], ["upgrade"], ["check"]):
            service.run([*RUN_DATABASE[self.database], PYTHON, "-m", "app", "db", *verb])

    def test_person_signs_up_signs_in_and_keeps_todos(self, service: BakedProject) -> None:
        # A machine that pauses must not fail the test.
        with serve(["make", "run"], service.path, READINESS_TIMEOUT_SECONDS="60") as server:
            account = {"email": "ada@example.com", "password": PASSWORD}
            assert server.request("POST", "/api/v1/users", account).status == 201
            token = sign_in(server, "ada@example.com")

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
            todos = server.request("GET", "/api/v1/todos", token=sign_in(server, "ada@example.com"))
            assert [todo["title"] for todo in todos.json["items"]] == ["Write a test"]
            server.stop(signal.SIGINT, group=True)

    @pytest.mark.parametrize(
        "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda n: n.name
    )
    def test_make_run_leaves_no_processes(self, service: BakedProject, number: signal.Signals) -> None:
        with serve(["make", "run"], service.path) as server:
            server.stop(number, group=number != signal.SIGKILL)

        service.run([*RUN_DATABASE[self.database], PYTHON, "-m", "app", "db", "check"])

    def test_every_command_of_the_readme_works(self, tmp_path: Path) -> None:
        repository = tmp_path / "template"
        # The tools of the template are fetched from its repository.
        copy_template(repository)
        run_git(repository, "init", "--quiet", "--initial-branch=main")
        commit_all(repository, "First")
        project = BakedProject(bake_team(repository, tmp_path / "team", "main", database=self.database).path, {})
        subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
        path = [str(project.path / ".venv" / "bin"), str(tmp_path / "bin"), person_environment()["PATH"]]
        # Run the commands of the README last: one of them removes the development tools.
        text = project.read("docs/features.md") + project.read("README.md")
        blocks = "".join(re.findall(r"(?ms)^```(?:sh|console)\n(.*?)^```", text)).splitlines()

        for line in [*blocks, *re.findall(r"`((?:make|uv) [^`]+)`", text)]:
            command = line.partition(" #")[0].strip()
            # `make` starts a database; for other commands, the test starts one. `copy` and `set` are commands of
            # Windows: a function replaces `copy`, and `set` has no effect here.
            database = [] if command.startswith("make") else RUN_DATABASE[self.database]
            script = [*database, "sh", "-ec", f'copy() {{ cp "$@"; }}; {command}']
            if command in SERVING:
                with serve(script, project.path, PATH=":".join(path)) as server:
                    server.stop(signal.SIGINT, group=True)
            elif command not in TESTED_ELSEWHERE:
                project.run(script, PATH=":".join(path))


class TestOnPostgreSQL(ServiceTests):
    database = "postgresql"


class TestOnSQLite(ServiceTests):
    database = "sqlite"


class TestOnCircus:
    def test_checks_and_process_tests_pass(self, bake: Bake) -> None:
        project = bake(database="sqlite", process_manager="circus")
        project.run(["make", "check"])

        output = project.run([PYTHON, "-m", "pytest", "-n", "auto", *MANAGED])

        assert re.search(r"\d+ passed", output), output


def replace(path: Path, *replacements: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for pattern, replacement in replacements:
        text, count = re.subn(pattern, replacement, text)
        assert count, f"{pattern} is not in {path}"
    path.write_text(text, encoding="utf-8")


def add_notes(project: BakedProject) -> None:
    """Add a feature as docs/features.md describes, by copying the sample."""
    renamed = (("todo", "note"), ("Todo", "Note"))
    shutil.copytree(project.path / "app" / "todos", project.path / "app" / "notes")
    tests = project.path / "tests" / "notes"
    shutil.copytree(project.path / "tests" / "todos", tests)
    (tests / "test_todos.py").rename(tests / "test_notes.py")
    for path in (*(project.path / "app" / "notes").glob("*.py"), tests / "test_notes.py"):
        text = path.read_text(encoding="utf-8")
        # Constants such as TODO_BY_ID are in upper case.
        for old, new in (*renamed, ("TODO", "NOTE")):
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
    replace(
        project.path / "app" / "features.py",
        (r"(?m)^from app.outbox", "from app.notes.feature import feature as notes\nfrom app.outbox"),
        (r"(?m)^    todos,$", "    todos,\n    notes,"),
    )
    replace(project.path / "pyproject.toml", (r"\((app\.)?todos\)", r"\g<0> | \1notes"))
    errors = project.path / "docs" / "errors.md"
    codes = re.sub(r"(?m)^(\| `)todo(-.*\n)", r"\g<0>\1note\2", errors.read_text(encoding="utf-8"))
    errors.write_text(codes, encoding="utf-8")
    project.run(["make", "migrate", "m=add notes"])
    # The new names change the order of the imports.
    project.run(["make", "fix"])


def list_removal(project: BakedProject) -> list[str]:
    """Return the commands in the steps of docs/features.md for removing a feature."""
    section = project.read("docs/features.md").partition("\n## Remove a feature\n")[2]
    section = section.partition("\nNever delete a migration")[0]
    steps = re.findall(r"(?m)^\d+\. (.*)$", section)
    assert len(steps) > 5
    return [command for step in steps for command in re.findall(r"`((?:make|rm|sed) [^`]+)`", step)]


def remove_routes(project: BakedProject) -> None:
    """Remove the routes but not the tables, as docs/features.md describes for the first of two releases."""
    for sample in ("todos", "projects"):
        replace(
            project.path / "app" / sample / "feature.py",
            (rf"from app.{sample}.router import router\n", ""),
            ("api=router, ", ""),
        )
        for test in (project.path / "tests").rglob(f"test_*{sample}.py"):
            test.unlink()
    sections = project.path / "app" / "web" / "feature.py"
    if sections.exists():
        replace(sections, (r"(?m)^.*todos.*\n", ""))


def follow_developing_md(project: BakedProject) -> None:
    """Follow docs/developing.md word for word, as a new developer does, but for the whole suite of tests."""

    def run(command: str) -> None:
        if command != "make test":
            project.run(["sh", "-ec", command])

    text = project.read("docs/developing.md")
    assert "\nmake test\n" in text
    for step in read_steps(text):
        step.follow(project.path, run)


@pytest.fixture(scope="class")
def used(request: pytest.FixtureRequest, bake: Bake) -> BakedProject:
    """A project to which a team has added features, and which has rows in the tables of the samples."""
    project = bake(database=request.cls.database, web_pages=request.cls.web_pages)
    follow_developing_md(project)
    add_notes(project)
    with serve(["make", "run"], project.path, READINESS_TIMEOUT_SECONDS="60") as server:
        account = {"email": "ada@example.com", "password": PASSWORD}
        assert server.request("POST", "/api/v1/users", account).status == 201
        token = sign_in(server, "ada@example.com")
        for name in ("todos", "notes"):
            assert server.request("POST", f"/api/v1/{name}", {"title": "Keep me"}, token=token).status == 201
        sample = {"name": "Delete me", "starts_on": "2026-01-12"}
        assert server.request("POST", "/api/v1/projects", sample, token=token).status == 201
        server.stop(signal.SIGINT, group=True)
    return project


@pytest.fixture(scope="class")
def outputs(request: pytest.FixtureRequest, used: BakedProject) -> dict[str, str]:
    """Remove the samples by the commands of docs/features.md, and return the output of each command."""
    commands = {command: command for command in list_removal(used)}
    assert ALL_CHECKS in commands
    if not request.cls.tests_after_removal:
        commands[ALL_CHECKS] = f"make check && {PYTHON} -m pytest -n auto {FEW_TESTS}"
    return {command: used.run(["sh", "-ec", to_run]) for command, to_run in commands.items()}


class DrillTests:
    """A new developer's day: build features by the documents, then remove the samples, which hold data."""

    database: str
    # The opposite of ServiceTests, which tests PostgreSQL without the pages, and SQLite with the pages.
    web_pages: str
    # Whether all tests run after the samples are removed, among them those of docs/developing.md; they take minutes.
    tests_after_removal: bool

    @pytest.mark.usefixtures("outputs")
    def test_migration_drops_the_samples_tables_and_no_other(self, used: BakedProject) -> None:
        (migration,) = (used.path / "migrations" / "versions").glob("*remove*")
        text = migration.read_text(encoding="utf-8")

        upgrade = text.partition("def upgrade")[2].partition("def downgrade")[0]
        assert sorted(re.findall(r"drop_table\([\"'](\w+)", upgrade)) == ["expenses", "projects", "todos"]
        assert not re.search("notes|books|loans", text)

    @pytest.mark.usefixtures("outputs")
    def test_data_of_other_features_stays(self, used: BakedProject) -> None:
        with serve(["make", "run"], used.path, READINESS_TIMEOUT_SECONDS="60") as server:
            token = sign_in(server, "ada@example.com")
            removed = [server.request("GET", f"/api/v1/{name}", token=token) for name in ("todos", "projects")]
            assert [answer.status for answer in removed] == [404, 404]
            notes = server.request("GET", "/api/v1/notes", token=token)
            assert [note["title"] for note in notes.json["items"]] == ["Keep me"]
            server.stop(signal.SIGINT, group=True)
        app = [*RUN_DATABASE[self.database], PYTHON, "-m", "app", "db"]
        for verb in (["check"], ["downgrade", "base"], ["upgrade"], ["check"]):
            used.run([*app, *verb])


class TestDrillOnPostgreSQL(DrillTests):
    database = "postgresql"
    web_pages = "yes"
    tests_after_removal = True

    def test_all_checks_pass_after_the_samples_are_removed(self, outputs: dict[str, str]) -> None:
        output = outputs[ALL_CHECKS]

        assert re.search(r"\d+ passed", output), output
        assert "Left out: the tests that start servers" in output, output

    @pytest.mark.usefixtures("outputs")
    def test_service_starts_without_the_samples(self, used: BakedProject) -> None:
        used.run([PYTHON, "-m", "pytest", "-n", "auto", "-m", "processes", "tests/test_startup.py"])


class TestDrillOnSQLite(DrillTests):
    database = "sqlite"
    web_pages = "no"
    tests_after_removal = False

    def test_release_without_its_routes_keeps_the_schema(self, bake: Bake) -> None:
        project = bake(database=self.database, web_pages="yes")
        remove_routes(project)

        project.run(["make", "check"])
        project.run([PYTHON, "-m", "pytest", "-n", "auto", "tests/core/db/test_migrations.py", "tests/test_docs.py"])
