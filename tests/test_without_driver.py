"""The service works after the steps in docs/database.md have removed `app/core/db/driver`."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import person_environment, run_program
from tests.support.projects import TIMEOUT_SECONDS
from tests.support.template import ROOT, SERVICE

# These tests run most of the typed statements; the whole suite would take too long.
TESTED = ("tests/core/db", "tests/todos", "tests/projects", "tests/accounts/test_auth.py")


def read_steps() -> str:
    page = (ROOT / SERVICE / "docs/database.md").read_text(encoding="utf-8")
    chapter = page.partition("## Without `app/core/db/driver`\n")[2].partition("\n## ")[0]
    (steps,) = re.findall(r"```sh\n(.*?)```", chapter, re.DOTALL)
    return str(steps)


@pytest.mark.slow
def test_service_works_once_the_steps_of_the_page_have_removed_the_driver(tmp_path: Path) -> None:
    project = tmp_path / "project"
    shutil.copytree(ROOT / SERVICE, project, ignore=shutil.ignore_patterns(".postgres", "__pycache__"))
    subprocess.run(["sh", "-eu", "-c", read_steps()], cwd=project, check=True)

    folders = [project / name for name in ("app", "tests", "scripts", "migrations")]
    imports = re.compile(r"(?m)^(?:from|import) app\.core\.db\.driver\b")
    assert [path for each in folders for path in each.rglob("*.py") if imports.search(path.read_text("utf-8"))] == []
    programs = Path(sys.executable).parent
    environment = person_environment(TEST_DATABASE_URL="sqlite://", PYTHONDONTWRITEBYTECODE="1")
    for command in (
        [programs / "ruff", "check", "--no-cache", "app", "tests", "--ignore=RUF200"],
        [programs / "lint-imports", "--no-cache"],
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-m", "not processes", *TESTED],
    ):
        done = run_program([str(word) for word in command], TIMEOUT_SECONDS, folder=project, env=environment)
        assert done.returncode == 0, done.stdout[-20000:]
