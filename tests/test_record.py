"""The record of what a project was baked from, `.cruft.json`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cookiecutter.main import cookiecutter

from tests.support import nasty
from tests.support.programs import UV, person_environment
from tests.support.projects import RECORD, run_cookiecutter
from tests.support.template import CONTEXT

IDENTITY = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
# Texts that cookiecutter would render, in the form in which its command line takes them.
TEMPLATE_SYNTAX = {
    "project_name": '{{ "{{ cookiecutter.domain_name }} \\"%} C:\\\\new é🚀" }}',
    "description": '{{ "  #% if" }}',
    "author_name": '{{ "{# no comment #} {% raw %}" }}',
}


def run_git(folder: Path, *arguments: str) -> str:
    # The settings of the user, such as signed commits, must not change the outcome.
    environment = person_environment(GIT_CONFIG_GLOBAL=os.devnull, GIT_CONFIG_SYSTEM=os.devnull)
    command = ["git", *IDENTITY, "-C", str(folder), *arguments]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def read_record(project: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((project / RECORD).read_text(encoding="utf-8"))
    return record


def read_files(project: Path) -> dict[str, bytes]:
    """Return the content of the files that a commit would contain."""
    run_git(project, "init", "--quiet")
    names = run_git(project, "ls-files", "-z", "--others", "--exclude-standard").split("\0")
    return {name: (project / name).read_bytes() for name in names if name}


@pytest.fixture(scope="module")
def repository(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the template in a repository with a tag, a later commit and a remote repository."""
    folder = shutil.copytree(template, tmp_path_factory.mktemp("repository") / "my template")
    run_git(folder, "init", "--quiet", "--initial-branch", "main")
    run_git(folder, "add", "--all")
    run_git(folder, "commit", "--quiet", "--message", "First")
    run_git(folder, "tag", "v1.2.0")
    run_git(folder, "commit", "--quiet", "--allow-empty", "--message", "Second")
    return folder


def bake(template: Path, folder: Path, *options: str, **answers: str) -> Path:
    done = run_cookiecutter(template, folder, *options, **answers)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "out" / "my-service"


def test_record_names_template_commit_version_and_answers(repository: Path, tmp_path: Path) -> None:
    record = read_record(bake(repository, tmp_path, author_name="Ada", project_slug="my-service"))

    head = run_git(repository, "rev-parse", "HEAD")
    public = {option: value for option, value in CONTEXT.items() if not option.startswith("_")}
    defaults = {option: value[0] if isinstance(value, list) else value for option, value in public.items()}
    assert record == {
        "template": str(repository),
        "commit": head,
        "checkout": None,
        "context": {"cookiecutter": defaults | {"author_name": "Ada", "project_slug": "my-service"}},
        "directory": None,
        "version": f"v1.2.0-1-g{head[:7]}",
    }


def test_record_of_a_clone_names_its_checkout_and_version(repository: Path, tmp_path: Path) -> None:
    # cookiecutter takes an address without "git" for a folder.
    done = run_cookiecutter(f"git+{repository.as_uri()}", tmp_path, "--checkout", "v1.2.0")
    assert done.returncode == 0, done.stdout + done.stderr

    record = read_record(tmp_path / "out" / "my-service")
    assert (record["template"], record["checkout"], record["version"]) == (repository.as_uri(), "v1.2.0", "v1.2.0")
    assert record["commit"] == run_git(repository, "rev-parse", "v1.2.0")


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://ada:s3cret@git.example.com/team/template.git", "https://git.example.com/team/template.git"),
        ("https://t0ken@git.example.com/team/template?key=s3cret", "https://git.example.com/team/template"),
        ("git@git.example.com:team/template.git", "git@git.example.com:team/template.git"),
        ("ssh://git@git.example.com:2222/team/template", "ssh://git@git.example.com:2222/team/template"),
        ("../elsewhere", None),
    ],
)
def test_record_of_a_local_clone_names_the_remote_without_its_password(
    remote: str, address: str | None, repository: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    run_git(repository, "clone", "--quiet", str(repository), str(clone))
    run_git(clone, "remote", "set-url", "origin", remote)

    project = bake(clone, tmp_path)

    assert read_record(project)["template"] == (address or str(clone))
    assert "s3cret" not in (project / RECORD).read_text(encoding="utf-8")


def test_record_is_the_same_when_the_template_is_a_relative_path(repository: Path, tmp_path: Path) -> None:
    absolute = read_record(bake(repository, tmp_path))
    command = [sys.executable, "-m", "cookiecutter", "--no-input", "--default-config", "--output-dir", "out", "."]
    script = 'cd "$1" && shift && exec "$@"'

    # The folder that make or an editor started in is another one than the shell's.
    clone = tmp_path / "clone"
    run_git(repository, "clone", "--quiet", str(repository), str(clone))
    subprocess.run(
        ["sh", "-c", script, "sh", str(clone), *command],
        cwd=tmp_path,
        env=person_environment(HOME=str(tmp_path), PWD=str(tmp_path)),
        check=True,
        capture_output=True,
    )

    assert read_record(clone / "out" / "my-service") == absolute | {"template": str(clone)}


def test_record_names_the_folder_of_a_template_in_a_larger_repository(repository: Path, tmp_path: Path) -> None:
    larger = tmp_path / "larger"
    shutil.copytree(repository, larger / "templates" / "service", ignore=shutil.ignore_patterns(".git"))
    run_git(larger, "init", "--quiet")
    run_git(larger, "add", "--all")
    run_git(larger, "commit", "--quiet", "--message", "First")

    record = read_record(bake(larger, tmp_path, "--directory", "templates/service"))

    assert (record["template"], record["directory"]) == (str(larger), "templates/service")
    assert record["commit"] == run_git(larger, "rev-parse", "HEAD")


def test_record_of_a_copy_inside_another_repository_names_no_commit(repository: Path, tmp_path: Path) -> None:
    run_git(tmp_path, "init", "--quiet")
    run_git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "Another project")
    copy = shutil.copytree(repository, tmp_path / "copy", ignore=shutil.ignore_patterns(".git"))

    record = read_record(bake(copy, tmp_path))

    assert (record["template"], record["commit"], record["version"]) == (str(copy), None, None)


def test_variables_of_a_git_hook_do_not_change_the_record(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_git(tmp_path, "init", "--quiet", "other")
    environment = person_environment(GIT_DIR=str(tmp_path / "other" / ".git"), GIT_INDEX_FILE=str(tmp_path / "index"))
    monkeypatch.setattr("tests.support.projects.person_environment", lambda **more: environment | more)

    assert read_record(bake(repository, tmp_path))["commit"] == run_git(repository, "rev-parse", "HEAD")


def test_bake_says_that_the_template_has_uncommitted_changes(repository: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    run_git(repository, "clone", "--quiet", str(repository), str(clone))
    clean = run_cookiecutter(clone, tmp_path, project_slug="clean").stdout
    (clone / "notes.md").touch()

    changed = run_cookiecutter(clone, tmp_path).stdout

    assert "not committed" not in clean
    assert "The template has changes that are not committed" in changed


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"database": "sqlite", "deployment": "both", "web_pages": "yes", "weather_example": "yes", "ci": "gitlab"},
        dict(zip(TEMPLATE_SYNTAX, nasty.ACCEPTED.values(), strict=False)),
        TEMPLATE_SYNTAX,
    ],
    ids=["default", "choices", "texts", "template-syntax"],
)
def test_baking_with_the_record_gives_the_same_files(answers: dict[str, str], repository: Path, tmp_path: Path) -> None:
    first = bake(repository, tmp_path, **answers | {"project_slug": "my-service"})
    record = read_record(first)
    options = {"no_input": True, "output_dir": str(tmp_path / "second")}
    config = str(tmp_path / "home" / "config.yaml")

    second = Path(
        cookiecutter(record["template"], config_file=config, extra_context=record["context"]["cookiecutter"], **options)
    )

    assert read_files(second) == read_files(first)


def test_cruft_updates_a_project_and_keeps_its_edits(repository: Path, tmp_path: Path) -> None:
    upstream = tmp_path / "upstream"
    run_git(repository, "clone", "--quiet", str(repository), str(upstream))
    project = bake(upstream, tmp_path, **TEMPLATE_SYNTAX | {"project_slug": "my-service"})
    run_git(project, "init", "--quiet")
    (project / "app" / "todos" / "models.py").write_text("# edited\n", encoding="utf-8")
    run_git(project, "add", "--all")
    run_git(project, "commit", "--quiet", "--message", "First")
    license_text = upstream / "{{cookiecutter.project_slug}}" / "LICENSE"
    license_text.write_text("New terms\n", encoding="utf-8")
    run_git(upstream, "commit", "--quiet", "--all", "--message", "Third")

    def run_cruft(*arguments: str) -> subprocess.CompletedProcess[str]:
        tool = (UV, "tool", "run", "--quiet", "--python", sys.executable, "--from", "cruft==2.16.0", "cruft")
        environment = person_environment(HOME=str(tmp_path), GIT_CONFIG_GLOBAL=os.devnull)
        return subprocess.run(
            [*tool, *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
        )

    outdated, updated, current = run_cruft("check"), run_cruft("update", "--skip-apply-ask"), run_cruft("check")

    assert [each.returncode for each in (outdated, updated, current)] == [1, 0, 0], outdated.stdout + updated.stderr
    assert (project / "LICENSE").read_text(encoding="utf-8") == "New terms\n"
    assert (project / "app" / "todos" / "models.py").read_text(encoding="utf-8") == "# edited\n"
    assert read_record(project)["commit"] == run_git(upstream, "rev-parse", "HEAD")
    assert "author_name" in read_record(project)["context"]["cookiecutter"]
