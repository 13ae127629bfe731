"""A project from an earlier commit of this repository, with the edits of a team, is updated to the work tree."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.programs import person_environment
from tests.support.projects import RECORD, BakedProject, run_cookiecutter
from tests.support.template import CONTEXT, ROOT, list_files
from tests.update.teams import Team, run_git

pytestmark = pytest.mark.slow

# The commit before this one wrote no record of what a project was baked from.
FIRST_RECORD = "tests/test_record.py"
ROUTE = """\
@router.get("/newest", response_model=Page[TodoRead], responses=problem_responses(401, 403))
async def list_newest_todos(user: CurrentUser, session: SessionDep, page: PageDep) -> PageResult[TodoRecord]:
    return await service.list_todos(session, user.id, sort=TodoSort.NEWEST, completed=None, page=page)


"""
# The tests of the schema, the pages, the documents and every route; the whole suite would take minutes.
TESTS = "tests/core/db tests/todos tests/web tests/test_docs.py tests/test_attacks.py"
DELETIONS = (
    "rm -r app/projects tests/projects",
    "sed -i '/projects/d' app/features.py",
    "sed -i -e 's/ | (projects)//' pyproject.toml",
    r"sed -i -E '/^\| .(project|expense|receipt)-/d' docs/errors.md",
)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A repository with the history of this one and a commit of the work tree; returns the earlier and this commit."""
    added = run_git(ROOT, "log", "--format=%H", "--diff-filter=A", "--", FIRST_RECORD).split()
    if not added or run_git(ROOT, "rev-list", "--parents", "--max-count=1", added[-1]) == added[-1]:
        # A shallow clone does not contain the earlier version; the pipelines fetch the whole history.
        pytest.skip(f"needs the commit before {FIRST_RECORD} was added: fetch the whole history")
    folder = tmp_path_factory.mktemp("history") / "template"
    run_git(folder.parent, "clone", "--quiet", str(ROOT), folder.name)
    earlier = run_git(folder, "rev-parse", f"{added[-1]}^")
    for name in run_git(folder, "ls-files", "-z").split("\0")[:-1]:
        (folder / name).unlink()
    for path in list_files("."):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    run_git(folder, "add", "--all")
    run_git(folder, "commit", "--quiet", "--allow-empty", "--message", "The work tree")
    return folder, earlier, run_git(folder, "rev-parse", "HEAD")


def bake_earlier(repository: Path, commit: str, folder: Path, **answers: str) -> Team:
    """Bake a commit that writes no record, and write the record by hand, as docs/updating.md describes."""
    clone = folder / "earlier"
    run_git(folder, "clone", "--quiet", str(repository), clone.name)
    run_git(clone, "checkout", "--quiet", commit)
    done = run_cookiecutter(clone, folder, project_slug="my-service", **answers)
    assert done.returncode == 0, done.stderr
    team = Team(folder / "out" / "my-service", repository)
    defaults = {name: value[0] if isinstance(value, list) else value for name, value in CONTEXT.items()}
    public = {name: value for name, value in defaults.items() if not name.startswith("_")}
    record = {
        "template": str(repository),
        "commit": commit,
        "checkout": None,
        "context": {"cookiecutter": public | {"project_slug": "my-service"} | answers},
        "directory": None,
    }
    team.write(RECORD, json.dumps(record))
    run_git(team.path, "init", "--quiet", "--initial-branch=main")
    team.commit("Generate the project")
    return team


def edit(team: Team, project: BakedProject) -> None:
    """Make the edits of a team: ten subjects, most of them in files that the template also changes."""
    for command in DELETIONS:
        project.run(["sh", "-euc", command])
    team.replace("app/todos/router.py", '@router.get("/{todo_id}"', ROUTE + '@router.get("/{todo_id}"')
    setting = '    our_sender: bool = Field(default=False, description="Whether we send ourselves.")\n    smtp_port: '
    team.replace("app/core/config/email.py", "    smtp_port: ", setting)
    team.replace("app/web/templates/home.html", "{%", "{# Ours. #}\n{%")
    team.replace("compose.yaml", "services:\n", "services:\n  ours:\n    image: example.com/ours\n\n")
    team.replace("README.md", "## Test it\n", "## Test it\n\nOur way.\n")
    row = "| [features.md]"
    team.replace("README.md", row, f"| [ours.md](docs/ours.md) | developers | ours |\n{row}")
    team.write("docs/ours.md", "# Ours\n")
    team.replace("Makefile", "help: ##", "ours: ## Print a text of ours.\n\t@echo ours\n\nhelp: ##")
    team.replace("pyproject.toml", '    "pydantic>=', '    "markupsafe>=2",\n    "pydantic>=')
    project.run(["make", "migrate", "m=remove the projects"])
    project.run(["make", "docs"])
    team.commit("Edit")


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_project_from_an_earlier_commit_is_updated_with_all_its_edits(
    database: str, history: tuple[Path, str, str], tmp_path: Path
) -> None:
    repository, earlier, newest = history
    team = bake_earlier(repository, earlier, tmp_path, database=database, web_pages="yes")
    project = BakedProject(team.path, {})
    edit(team, project)
    own = [path.relative_to(team.path).as_posix() for path in team.path.glob("migrations/versions/*remove*.py")]
    edits = {path: team.read(path) for path in ("docs/ours.md", *own)}
    started = time.monotonic()

    # The earlier version has no `make update` either.
    output = team.update("--version", newest)

    seconds = time.monotonic() - started
    print(f"\nAn update from {earlier[:12]}: {seconds:.1f} s")  # noqa: T201  # a measured time, for the report of the tests
    assert seconds < 60
    assert team.git("ls-files", "--unmerged") == "", output
    assert team.record["commit"] == newest
    assert not (team.path / "app" / "projects").exists()
    assert not (team.path / "tests" / "projects").exists()
    assert len(edits) == 2
    assert {path: team.read(path) for path in edits} == edits
    assert ROUTE in team.read("app/todos/router.py")
    assert "our_sender" in team.read("app/core/config/email.py")
    assert all("OUR_SENDER" in team.read(name) for name in ("docs/settings.md", ".env.example"))
    assert "{# Ours. #}" in team.read("app/web/templates/home.html")
    assert "image: example.com/ours" in team.read("compose.yaml")
    assert all(text in team.read("README.md") for text in ("Our way.", "docs/ours.md"))
    assert project.run(["make", "ours"]) == "ours\n"
    assert '"markupsafe>=2"' in team.read("pyproject.toml")
    for command in re.findall(r"(?m)^  (\.venv/bin/python -m app db reparent \w+)$", output):
        project.run(command.split())
    project.run(["make", "check"])
    project.run([".venv/bin/python", "-m", "pytest", "-n", "auto", "-m", "not processes", *TESTS.split()])


def test_make_update_runs_the_newest_updater_with_uv(history: tuple[Path, str, str], tmp_path: Path) -> None:
    repository, _, newest = history
    clone = tmp_path / "clone"
    run_git(tmp_path, "clone", "--quiet", str(repository), clone.name)
    done = run_cookiecutter(clone, tmp_path, project_slug="my-service", database="sqlite")
    assert done.returncode == 0, done.stderr
    team = Team(tmp_path / "out" / "my-service", repository)
    run_git(team.path, "init", "--quiet")
    team.commit()
    project = BakedProject(team.path, {})
    settings = {"GIT_CONFIG_GLOBAL": os.devnull}

    planned = project.run(["make", "update", "ANSWERS=deployment=both", "DRY_RUN=1"], **settings)
    assert "Nothing was changed, because this was a dry run." in planned
    assert not (team.path / "deploy" / "vm").exists()
    output = project.run(["make", "update", "ANSWERS=deployment=both"], **settings)

    assert "Changed answers: deployment=both." in output
    assert (team.path / "deploy" / "vm").exists()
    assert team.record["commit"] == newest
    refused = subprocess.run(
        ["make", "update"], cwd=team.path, env=person_environment(**settings), capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "not committed" in refused.stderr
