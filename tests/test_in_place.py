"""The service in its folder of the template, where `make check` lints and type-checks it and its tests can run."""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.support.programs import person_environment, run_program
from tests.support.projects import TIMEOUT_SECONDS
from tests.support.stored_files import READ_FILE, STORE_FILE
from tests.support.template import ROOT, SERVICE, list_files

# In its folder of the template, the service has both optional parts, the pages and the weather.
FOLDERS = ("tests/todos", "tests/web", "tests/weather")


def test_python_of_the_service_holds_no_template_syntax() -> None:
    for path in list_files(SERVICE):
        if path.suffix == ".py":
            text = (ROOT / path).read_text(encoding="utf-8")

            # Doubled braces are not allowed in Python either, so that nobody has to ask whether they are Jinja.
            assert not {mark for mark in ("{{", "{%", "{#", "#%") if mark in text}, path
            assert "cookiecutter" not in text, path


def list_imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_modules_that_start_servers_have_the_mark_processes() -> None:
    modules = list((ROOT / SERVICE / "tests").rglob("test_*.py"))
    starting = {path.name for path in modules if list_imports(path) & {"run_server", "start_process", "run_inherited"}}
    marked = {path.name for path in modules if "\npytestmark = pytest.mark.processes\n" in path.read_text("utf-8")}

    assert starting
    assert starting == marked


@pytest.mark.parametrize("path", ["Dockerfile", "compose.yaml", "deploy/vm/units/service@.service"])
def test_every_deployment_starts_workers_through_start_sh(path: str) -> None:
    text = (ROOT / SERVICE / path).read_text(encoding="utf-8")

    assert re.search(r'(?m)(CMD|command:|ExecStart=).*/start\.sh("\])?$', text)
    # start.sh alone configures the memory allocator.
    assert "MALLOC" not in text


def test_only_the_sample_features_own_tests_mention_it() -> None:
    tests = ROOT / SERVICE / "tests"
    mentioning = (path for path in tests.rglob("*.py") if "todo" in path.read_text(encoding="utf-8").lower())

    assert {path.relative_to(tests).as_posix() for path in mentioning} == {"todos/test_todos.py", "web/test_todos.py"}


@pytest.mark.parametrize("program", [STORE_FILE, READ_FILE], ids=["store", "read"])
def test_programs_for_stored_files_import_existing_names(program: str) -> None:
    imports = program.partition("\nsettings = ")[0]

    done = run_program(
        [sys.executable, "-c", imports],
        TIMEOUT_SECONDS,
        folder=ROOT / SERVICE,
        env=person_environment(PYTHONDONTWRITEBYTECODE="1"),
    )

    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_service_tests_run_in_place_and_leave_no_files() -> None:
    """Runs only the tests in FOLDERS; test_service.py runs all tests, in baked projects."""
    before = list_files(SERVICE, ignored=True)

    done = run_program(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not processes", *FOLDERS],
        TIMEOUT_SECONDS,
        folder=ROOT / SERVICE,
        env=person_environment(PYTHONDONTWRITEBYTECODE="1"),
    )

    assert done.returncode == 0, done.stdout[-20000:]
    assert list_files(SERVICE, ignored=True) == before
