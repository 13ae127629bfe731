"""Resources in a baked project on both databases: added, extended and removed; all checks pass in between."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.programs import UV, person_environment
from tests.support.projects import Bake, BakedProject
from tests.support.template import ROOT

pytestmark = pytest.mark.slow

PYTHON = ".venv/bin/python"
DATABASES = {"postgresql": [PYTHON, "-m", "scripts.embedded_postgres"], "sqlite": []}
# Every type, each scope, and references to a sample, to accounts, to each scope and to the resource itself.
RESOURCES = [
    {"NAME": "category", "ADMIN": "1", "FIELDS": "name:str(50):unique"},
    {
        "NAME": "label",
        "SHARED": "1",
        "FIELDS": "name:str(40):unique color:enum(red,blue)=red category:ref(categories)?",
    },
    {
        "NAME": "note",
        "FIELDS": "title:str(200) body:text due:date? amount:decimal(12,2)=9.99 status:enum(open,done)=open"
        " code:str(300):unique at:datetime since:datetime=2026-01-31T09:30:00+02:00 key:uuid:index active:bool=true"
        " rank:int=0 share:decimal(3,3)? extra:json={} meta:json? project:ref(projects)",
    },
    {
        "NAME": "sub_task",
        "FIELDS": "note:ref(notes) lead:ref(projects)? boss:ref(users)? category:ref(categories)?"
        " label:ref(labels) parent:ref(sub_tasks)?",
    },
]
FIELDS = [
    ("note", "priority:int=0"),
    ("note", "mood:enum(good,bad)=good:index"),
    ("note", "pinned:bool=false"),
    ("todo", "due_at:datetime?"),
    ("projects", "share:decimal(5,1)=1.5"),
]
COMMON_TESTS = "tests/test_attacks.py tests/core/db/test_migrations.py tests/test_error_codes.py tests/test_docs.py"
PAGE_TESTS = ("test_categories.py", "test_labels.py", "test_notes.py", "test_sub_tasks.py", "test_i18n.py")


# One of the databases with pages, and one without.
PAGES = {"postgresql": "no", "sqlite": "yes"}


@pytest.fixture(params=DATABASES)
def project(request: pytest.FixtureRequest, bake: Bake) -> BakedProject:
    project = bake(database=request.param, web_pages=PAGES[request.param])
    project.run(["make", "install"])
    return project


def run_tool(project: BakedProject, tool: str, **values: str) -> str:
    command = [UV, "run", "--quiet", "--script", str(ROOT / "tools" / f"{tool}.py"), "--project", "."]
    variables = {f"ARG_{name}": value for name, value in values.items()}
    return project.run(command, PYTHONDONTWRITEBYTECODE="1", **variables)


def end_while_it_prepares(project: BakedProject, folder: Path, number: signal.Signals) -> None:
    """Start to add a resource, and send a signal to all of its processes when the copy of the project exists."""
    folder.mkdir()
    variables = {"ARG_NAME": "zebra", "ARG_FIELDS": "stripes:int", "TMPDIR": str(folder)}
    command = [UV, "run", "--quiet", "--script", str(ROOT / "tools" / "resource.py"), "--project", "."]
    process = subprocess.Popen(command, cwd=project.path, env=person_environment(**variables), start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(folder.glob("resource-*/project/app/zebras")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)
    process.wait(60)
    # uv may end before the tool, which deletes its copy of the project.
    while list(folder.glob("resource-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def check(project: BakedProject, tests: str) -> None:
    project.run(["make", "check"])
    project.run([PYTHON, "-m", "pytest", "-n", "auto", *tests.split()])


def list_page_tests(project: BakedProject) -> str:
    paths = [f"tests/web/{name}" for name in PAGE_TESTS]
    return " ".join(path for path in paths if (project.path / path).exists())


def list_files(project: BakedProject) -> dict[str, bytes]:
    folders = ("app", "tests", "migrations", "docs")
    paths = [path for folder in folders for path in (project.path / folder).rglob("*")] + [*project.path.glob("*.toml")]
    return {str(path): path.read_bytes() for path in paths if path.is_file() and "__pycache__" not in path.parts}


def test_resources_are_added_extended_and_removed(project: BakedProject, tmp_path: Path) -> None:
    before = list_files(project)
    for number in (signal.SIGINT, signal.SIGTERM):
        end_while_it_prepares(project, tmp_path / number.name, number)
        assert list_files(project) == before
    started = time.monotonic()
    for values in RESOURCES:
        run_tool(project, "resource", **values)
    # Several times as long as on an idle machine.
    assert time.monotonic() - started < 60 * len(RESOURCES)
    check(
        project, f"tests/categories tests/labels tests/notes tests/sub_tasks {list_page_tests(project)} {COMMON_TESTS}"
    )

    for resource, field in FIELDS:
        run_tool(project, "field", RESOURCE=resource, FIELD=field)
    for resource in ("sub_task", "todo"):
        output = run_tool(project, "remove", RESOURCE=resource)
    assert "Delete what these documents say about todos: README.md" in output
    check(project, f"tests/categories tests/notes tests/projects {list_page_tests(project)} tests/test_attacks.py")
    app = [*DATABASES[project.answers["database"]], PYTHON, "-m", "app", "db"]
    for verb in (["upgrade"], ["check"], ["downgrade", "base"], ["upgrade"], ["check"]):
        project.run([*app, *verb])

    for resource in ("note", "label", "category"):
        run_tool(project, "remove", RESOURCE=resource)
    # Only the migrations of the resources remain.
    after = list_files(project)
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    rest = {re.sub(r".*/(app|tests|migrations|docs|pyproject\.toml)(/|$)", r"\1\2", name) for name in changed}
    assert {name for name in rest if re.search("note|label|categor|sub_task", name)} == {
        name for name in rest if name.startswith("migrations/") and re.search("note|label|categor|sub_task", name)
    }
    shutil.rmtree(project.path)
