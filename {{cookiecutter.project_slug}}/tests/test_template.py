"""`scripts/template.py` and `make update`: they run a tool of the template that the project was generated from."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.project import ROOT
from scripts import template
from tests.support.servers import PATIENCE_SECONDS, wait_for

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="the template is fetched with git")

# Prints its arguments, and where it runs.
TOOL = """\
import json, os, pathlib, sys
arguments = sys.argv[1:]
files = sorted(path.name for path in pathlib.Path(arguments[1], "tools").iterdir())
print(json.dumps({"arguments": arguments[2:], "folder": os.getcwd(), "files": files}))
sys.exit(3)
"""
WAITING_TOOL = """\
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("ended").touch(), sys.exit(4)))
pathlib.Path("started").write_text(sys.argv[2])
signal.pause()
"""
# Stands for `uv run --quiet --script`.
UV = '#!/bin/sh\n[ "$1 $2 $3" = "run --quiet --script" ] && shift 3 && exec {python} "$@"\n'
# Settings of the developer's git must not matter.
GIT_ENVIRONMENT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.com", *arguments]
    environment = {"PATH": os.environ["PATH"], **GIT_ENVIRONMENT}
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)  # noqa: S603  # git, with arguments of this test
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A template with two commits; only the second has the tool `later`."""
    folder = tmp_path / "the template"
    (folder / "tools").mkdir(parents=True)
    git(folder, "init", "--quiet")
    for name in ("update", "first"):
        (folder / "tools" / f"{name}.py").write_text(TOOL)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "First")
    (folder / "tools" / "later.py").write_text(TOOL)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Second")
    return folder


@pytest.fixture
def project(repository: Path, tmp_path: Path) -> Path:
    """A project from the first commit of the template, in a folder with a difficult name."""
    folder = tmp_path / "it's 100 % $HOME & a #folder"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "template.py", folder / "scripts")
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "tmp").mkdir()
    uv = folder / "uv"
    uv.write_text(UV.format(python=shlex.quote(sys.executable)))
    uv.chmod(0o755)
    write_record(folder, template=str(repository), commit=git(repository, "rev-parse", "HEAD~1"))
    return folder


def write_record(project: Path, **entries: object) -> None:
    (project / ".cruft.json").write_text(json.dumps(entries))


def make_environment(project: Path, **variables: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "UV": "./uv", "TMPDIR": str(project / "tmp"), **GIT_ENVIRONMENT, **variables}


def run(project: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = make_environment(project, **variables)
    done = subprocess.run(  # noqa: S603  # a command of this test, without input from outside
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert list((project / "tmp").iterdir()) == [], "no temporary file is left"
    return done


def run_tool(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(project, sys.executable, "scripts/template.py", *arguments, **variables)


def test_update_runs_in_its_newest_version_and_other_tools_in_that_of_the_project(project: Path) -> None:
    newest, recorded = (run_tool(project, name, "--dry-run", "a b") for name in ("update", "first"))

    assert (newest.returncode, recorded.returncode) == (3, 3), "the exit status is the tool's"
    answers = [json.loads(done.stdout) for done in (newest, recorded)]
    assert [answer["files"] for answer in answers] == [["first.py", "later.py", "update.py"], ["first.py", "update.py"]]
    assert [answer["arguments"] for answer in answers] == [["--project", ".", "--dry-run", "a b"]] * 2
    assert [answer["folder"] for answer in answers] == [str(project)] * 2


def test_variable_overrides_the_address(project: Path, repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    write_record(project, template="/nowhere", commit=commit)

    assert run_tool(project, "update", TEMPLATE=repository.as_uri()).returncode == 3


def test_folder_of_another_repository_in_the_environment_is_ignored(project: Path) -> None:
    assert run_tool(project, "first", GIT_DIR=str(project), GIT_WORK_TREE=str(project)).returncode == 3


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("gh:team/template", "https://github.com/team/template.git"),
        ("gl:team/template", "https://gitlab.com/team/template.git"),
        ("bb:team/template", "https://bitbucket.org/team/template.git"),
        ("https://git.example.com/template.git", "https://git.example.com/template.git"),
        ("git+https://git.example.com/template", "https://git.example.com/template"),
        ("git@git.example.com:team/template.git", "git@git.example.com:team/template.git"),
        ("/srv/template", "/srv/template"),
    ],
)
def test_addresses(address: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "ROOT", tmp_path)
    monkeypatch.delenv("TEMPLATE", raising=False)
    write_record(tmp_path, template=address, commit="abc")

    assert template.read_record() == (expected, "abc")


@pytest.mark.parametrize(
    ("record", "tool", "sentence"),
    [
        (None, "update", "There is no .cruft.json"),
        ("{", "update", ".cruft.json is not a record of a template"),
        ('{"template": "/nowhere/at/all", "commit": null}', "update", "make update TEMPLATE=ADDRESS"),
        ('{"template": "TEMPLATE", "commit": null}', "first", "does not say which commit"),
        ('{"template": "TEMPLATE", "commit": "1234567"}', "first", "has no commit 1234567"),
        ('{"template": "TEMPLATE", "commit": "FIRST"}', "later", "run `make update`"),
    ],
)
def test_what_is_missing_is_named_with_a_remedy(
    record: str | None, tool: str, sentence: str, project: Path, repository: Path
) -> None:
    (project / ".cruft.json").unlink()
    if record is not None:
        text = record.replace("TEMPLATE", str(repository)).replace("FIRST", git(repository, "rev-parse", "HEAD~1"))
        (project / ".cruft.json").write_text(text)

    done = run_tool(project, tool)

    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("program", ["git", "uv"])
def test_missing_program_is_named(program: str, project: Path) -> None:
    (project / "bin").mkdir()
    if program == "uv":
        (project / "bin" / "git").symlink_to(shutil.which("git") or "git")

    done = run_tool(project, "first", PATH=str(project / "bin"), UV="")

    assert f"{program} is missing: " in done.stderr
    assert "Traceback" not in done.stderr


def test_stop_waits_for_the_tool(project: Path, repository: Path) -> None:
    (repository / "tools" / "update.py").write_text(WAITING_TOOL)
    git(repository, "commit", "--quiet", "--all", "--message", "Wait")
    command = [sys.executable, "scripts/template.py", "update"]
    launcher = subprocess.Popen(command, cwd=project, env=make_environment(project), start_new_session=True)  # noqa: S603  # a command of this test, without input from outside
    try:
        wait_for(lambda: (project / "started").exists() and (project / "started").read_text() != "", "the tool starts")
        clone = Path((project / "started").read_text())
        assert clone.exists()

        launcher.send_signal(signal.SIGTERM)

        assert launcher.wait(PATIENCE_SECONDS) == 4
        assert (project / "ended").exists()
        assert not clone.exists()
    finally:
        launcher.kill()
        launcher.wait()


@pytest.mark.skipif(shutil.which("make") is None, reason="the target is a target of make")
def test_make_passes_values_unchanged(project: Path) -> None:
    answers = """description="it's $HOME $(id) `id` # %" domain_name=x"""

    plain = run(project, "make", "update", "UV=./uv")
    full = run(project, "make", "update", "UV=./uv", f"ANSWERS={answers}", "VERSION=v1 $(id)", "DRY_RUN=1")
    wet = run(project, "make", "update", "UV=./uv", "DRY_RUN=0")

    arguments = [json.loads(done.stdout)["arguments"][2:] for done in (plain, full, wet)]
    assert arguments == [
        ["--version=", "--answers="],
        ["--version=v1 $(id)", f"--answers={answers}", "--dry-run"],
        ["--version=", "--answers="],
    ]
