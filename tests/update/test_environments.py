"""Updates in unusual folders and repositories, and with settings of git that change its behavior."""

import os
import shutil
from pathlib import Path

import pytest

from tests.support import nasty
from tests.support.template import SERVICE
from tests.update.teams import CONFLICTS, Team, bake_team, commit_all, run_git

SETTINGS = """
[commit]
    gpgsign = true
[gpg]
    program = false
[core]
    hooksPath = {folder}/hooks
    autocrlf = true
    excludesFile = {folder}/excludes
    pager = false
    abbrev = 5
    quotePath = true
[merge]
    conflictStyle = zdiff3
    renames = false
    directoryRenames = false
    ff = only
[diff]
    renames = false
    external = false
    noprefix = true
    algorithm = histogram
[color]
    ui = always
[status]
    short = true
    showUntrackedFiles = no
[rerere]
    enabled = true
    autoUpdate = true
[submodule]
    recurse = true
[fetch]
    prune = true
    fsckObjects = true
[protocol "file"]
    allow = never
[user]
    useConfigOnly = true
"""


def test_settings_of_the_user_do_not_change_the_update(team: Team, baked: Team, tmp_path: Path) -> None:
    folder = tmp_path / "user"
    (folder / "hooks").mkdir(parents=True)
    for name in ("pre-commit", "post-checkout", "post-index-change", "prepare-commit-msg", "reference-transaction"):
        hook = folder / "hooks" / name
        hook.write_text(f"#!/bin/sh\necho {name} >> '{folder}/log'\nexit 1\n", encoding="utf-8")
        hook.chmod(0o755)
    (folder / "excludes").write_text("*.py\nREADME.md\n", encoding="utf-8")
    (folder / "config").write_text(SETTINGS.format(folder=folder), encoding="utf-8")
    plain = baked.copy(tmp_path / "plain")

    team.update(GIT_CONFIG_GLOBAL=str(folder / "config"))

    plain.update()
    assert team.state() == plain.state()
    assert not (folder / "log").exists()


def test_conflicts_have_the_style_of_the_user(team: Team) -> None:
    team.git("config", "merge.conflictStyle", "diff3")
    team.replace("README.md", "## Run it\n\n", "## Run it\n\nOur text.\n\n")
    team.commit()

    team.update(status=CONFLICTS)

    assert "||||||| parent of " in team.read("README.md")
    assert "(Template at v1.1.0)\n" in team.read("README.md")


@pytest.mark.parametrize("name", [nasty.FOLDER, "größe 服务 🚀", '"quoted" \\ back\\slash', "-dash", "a:b;c"])
def test_any_folder(baked: Team, tmp_path: Path, name: str) -> None:
    team, plain = baked.copy(tmp_path / name / "the project"), baked.copy(tmp_path / "plain")

    assert "app/core/cgroups.py -> app/core/control_groups.py" in team.update()

    plain.update()
    assert team.state() == plain.state()


def test_files_of_a_team_with_any_name(team: Team) -> None:
    names = ("größe 服务.md", 'a "quoted" \\ name.md', "-dash.md", "app/ spaced .py", "app/tab\tname.py")
    for name in names:
        team.write(name, f"Ours: {name}\n")
    team.path.joinpath("link").symlink_to("README.md")
    (team.path / "app" / "todos" / os.fsdecode(b"latin-\xe9.md")).write_text("Ours\n", encoding="utf-8")
    team.commit()
    team.git("mv", "app/todos", os.fsdecode(b"app/latin-\xe9"))
    team.commit()

    assert "app/latin-\\udce9/service.py" in team.update()

    assert all(team.read(name) == f"Ours: {name}\n" for name in names)


def test_project_in_a_larger_repository(baked: Team, tmp_path: Path) -> None:
    """The other project is as similar as possible: git must not find renames between the two."""
    larger = tmp_path / "larger"
    (larger / "the services").mkdir(parents=True)
    run_git(larger, "init", "--quiet")
    projects = [baked.copy(larger / "the services" / name) for name in ("one", "two")]
    for project in projects:
        shutil.rmtree(project.path / ".git")
    (larger / "README.md").write_text("Ours\n", encoding="utf-8")
    one = projects[0]
    one.write("migrations/versions/1001_notes.py", 'revision = "1001"\ndown_revision = "0004"\n')
    one.path.joinpath("app/core/cgroups.py").unlink()
    for path in one.path.joinpath("app/todos").iterdir():
        path.unlink()
    commit_all(larger, "First")
    plain = baked.copy(tmp_path / "plain")
    plain.update()

    output = one.update()

    changed = run_git(larger, "status", "--porcelain", "-z").split("\0")
    assert all("the services/one/" in entry for entry in changed if entry)
    assert one.read("docs/mail.md") == plain.read("docs/mail.md")
    app = "  the services/one/app"
    assert f"they stay deleted:\n{app}/core/cgroups.py\n{app}/todos/service.py" in output
    assert "they are left out:\n  the services/one/app/todos/labels.py" in output
    assert "reparent 0006" in output
    assert one.record["version"] == "v1.1.0"


def test_project_in_a_linked_worktree(team: Team, baked: Team, tmp_path: Path) -> None:
    team.git("worktree", "add", "--quiet", str(tmp_path / "linked"), "-b", "update")
    linked, plain = Team(tmp_path / "linked", team.repository), baked.copy(tmp_path / "plain")
    before = team.state()

    linked.update()

    plain.update()
    assert linked.tracked() == plain.tracked()
    assert team.state() == before


def test_update_from_a_subfolder_of_the_shell(team: Team) -> None:
    done = team.run_update("--project", "..", folder="app")

    assert done.returncode == 0, done.stderr


def test_variables_of_a_git_hook_name_no_other_repository(team: Team, baked: Team, tmp_path: Path) -> None:
    plain = baked.copy(tmp_path / "plain")
    run_git(tmp_path, "init", "--quiet", "other")

    team.update(GIT_DIR=str(tmp_path / "other/.git"), GIT_INDEX_FILE=str(tmp_path / "index"), GIT_PREFIX="x/")

    plain.update()
    assert team.state() == plain.state()


def test_shallow_clone_of_a_project(team: Team, baked: Team, tmp_path: Path) -> None:
    team.write("ours.md", "Ours\n")
    team.commit()
    run_git(tmp_path, "clone", "--quiet", "--depth=1", team.path.as_uri(), "shallow")
    shallow, plain = Team(tmp_path / "shallow", team.repository), baked.copy(tmp_path / "plain")

    shallow.update()

    plain.update()
    assert {**plain.tracked(), "ours.md": b"Ours\n\0"} == shallow.tracked()


def test_template_in_a_folder_of_its_repository(repository: Path, tmp_path: Path) -> None:
    larger = tmp_path / "larger"
    run_git(tmp_path, "clone", "--quiet", str(repository), str(larger))
    run_git(larger, "checkout", "--quiet", "v1.0.0")
    (larger / "templates").mkdir()
    for name in ("cookiecutter.json", "hooks", SERVICE, "CHANGELOG.md"):
        run_git(larger, "mv", name, f"templates/{name}")
    commit_all(larger, "Move", tag="v2.0.0")
    (larger / "templates" / SERVICE / "docs" / "mail.md").write_text("# New\n", encoding="utf-8")
    changelog = larger / "templates" / "CHANGELOG.md"
    changelog.write_text(changelog.read_text(encoding="utf-8") + "- A last entry.\n", encoding="utf-8")
    commit_all(larger, "New", tag="v2.1.0")
    team = bake_team(larger, tmp_path / "baked", "v2.0.0", "--directory", "templates")

    output = team.update()

    assert team.read("docs/mail.md") == "# New\n"
    assert "- A last entry." in output
    assert team.record["directory"] == "templates"
