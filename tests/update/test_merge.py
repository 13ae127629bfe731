"""An update to a newer version keeps the edits of a team, or leaves conflicts as git's own."""

import shutil
from pathlib import Path

import pytest

from tests.update.teams import CONFLICTS, Team, bake_team, run_git

SAME = "The new version."


@pytest.fixture
def edited(team: Team) -> Team:
    """A project with ten edits of a team, in files of which the template changes most."""
    shutil.rmtree(team.path / "app" / "projects")
    shutil.rmtree(team.path / "tests" / "projects")
    team.write("app/notes/__init__.py", "")
    team.write("app/notes/router.py", "NOTES = 1\n")
    route = '@router.get("/newest")\nasync def newest() -> None: ...\n\n\n'
    team.replace("app/todos/router.py", '@router.get("/{todo_id}"', route + '@router.get("/{todo_id}"')
    team.replace("app/core/cgroups.py", "import os\n", "import os\n\nOURS = 1\n")
    team.replace("app/core/config/email.py", "class ", "OURS = 1\n\n\nclass ")
    team.write("app/accounts/recovery/templates/ours.html", "<p>Ours</p>\n")
    team.write("migrations/versions/1001_notes.py", 'revision = "1001"\ndown_revision = "0004"\n')
    team.replace("compose.yaml", "services:\n", "services:\n  ours:\n    image: ours\n\n")
    team.replace("README.md", "## Test it\n", "## Test it\n\nOur way.\n")
    team.replace("Makefile", "clean: ##", "ours: ## Our target.\n\t@echo ours\n\nclean: ##")
    team.replace("pyproject.toml", '    "aiosmtplib', '    "aardvark>=1",\n    "aiosmtplib')
    team.write("docs/ours.md", "# Ours\n")
    team.commit()
    return team


def test_update_keeps_all_edits_and_brings_all_changes(edited: Team) -> None:
    before = edited.tracked()

    output = edited.update()

    assert edited.git("ls-files", "--unmerged") == ""
    assert edited.git("diff", "--name-only") == "", "everything is staged"
    assert "newest()" in edited.read("app/todos/router.py")
    assert "OURS = 1" in edited.read("app/core/config/email.py")
    assert edited.read("app/accounts/recovery/templates/ours.html") == "<p>Ours</p>\n"
    assert "  ours:\n    image: ours\n" in edited.read("compose.yaml")
    assert "Our way." in edited.read("README.md")
    assert "ours: ## Our target." in edited.read("Makefile")
    assert '"aardvark>=1"' in edited.read("pyproject.toml")
    assert {"app/notes/router.py", "docs/ours.md", "migrations/versions/1001_notes.py"} <= before.keys()
    assert all(before[name] == edited.tracked()[name] for name in before if "ours" in name or "notes" in name)
    assert not (edited.path / "app" / "projects").exists()
    for changed in ("compose.yaml", "docs/mail.md", "app/todos/service.py", "app/core/control_groups.py"):
        assert SAME in edited.read(changed)
    assert "In the region eu." in edited.read("README.md")
    assert "new: ## A new target." in edited.read("Makefile")
    assert '"control_groups | errors' in edited.read("pyproject.toml")
    assert not (edited.path / "docs" / "troubleshooting.md").exists()
    assert "1 file renamed:\n  app/core/cgroups.py -> app/core/control_groups.py" in output
    assert "1 file removed:\n  docs/troubleshooting.md" in output


def test_edits_follow_a_renamed_file(edited: Team) -> None:
    edited.update()

    assert not (edited.path / "app/core/cgroups.py").exists()
    assert "OURS = 1" in edited.read("app/core/control_groups.py")


def test_changes_follow_files_that_the_project_has_moved(team: Team) -> None:
    team.git("mv", "app/todos", "app/tasks")
    team.commit()

    team.update()

    assert SAME in team.read("app/tasks/service.py")
    assert (team.path / "app/tasks/labels.py").exists(), "a new file goes to the new folder"
    assert not (team.path / "app/todos").exists()


def test_record_is_updated_and_answers_are_kept(team: Team, repository: Path) -> None:
    before = team.record

    output = team.update()

    answers = dict(before["context"]["cookiecutter"])
    assert answers.pop("nickname") == "Bob"
    assert team.record == before | {
        "commit": run_git(repository, "rev-parse", "v1.1.0"),
        "version": "v1.1.0",
        "checkout": None,
        "context": {"cookiecutter": answers | {"region": "eu"}},
    }
    assert "New options, with their defaults: region=eu." in output
    assert "Options that the template no longer has: nickname." in output


def test_updated_project_without_edits_is_a_fresh_bake(team: Team, repository: Path, tmp_path: Path) -> None:
    team.update()

    fresh = bake_team(repository, tmp_path / "fresh", "v1.1.0", database="sqlite")
    assert {**team.tracked(), ".cruft.json": b""} == {**fresh.tracked(), ".cruft.json": b""}
    assert team.record | {"checkout": "v1.1.0"} == fresh.record


def test_second_update_says_that_there_is_nothing_to_do(team: Team) -> None:
    team.update()
    team.commit()
    state = team.state()

    output = team.update()

    assert output == "Already up to date: v1.1.0.\n\n"
    assert team.state() == state


def test_conflict_is_git_s_own_and_names_both_sides(team: Team) -> None:
    team.replace("README.md", "## Run it\n", "## Run it\n\nOur text.\n")
    team.replace("docs/troubleshooting.md", "# ", "# Our ")
    team.commit()

    output = team.update(status=CONFLICTS)

    text = team.read("README.md")
    ours, _, theirs = text.partition("<<<<<<< HEAD\n")[2].partition(">>>>>>> ")[0].partition("=======\n")
    assert (ours, theirs) == ("Our text.\n", "In the region eu.\n")
    assert "(Template at v1.1.0)\n" in text.partition(">>>>>>> ")[2]
    assert team.git("status", "--porcelain").splitlines().count("UU README.md") == 1
    assert "UD docs/troubleshooting.md" in team.git("status", "--porcelain")
    assert team.git("ls-files", "--unmerged", "README.md").count("\n") == 2, "three stages"
    assert "2 files with conflicts:\n  README.md\n  docs/troubleshooting.md" in output
    assert "CONFLICT (content): Merge conflict in README.md" in output
    for advice in ("--ours", "--theirs", "abort", "reset", "checkout"):
        assert advice not in output
    team.git("checkout", "--merge", "README.md")
    # No operation has to be continued.
    assert team.git("status").splitlines()[0] == "On branch main"
    assert "cherry" not in team.git("status")
    team.commit("Resolve")
    assert "Already up to date" in team.update()


def test_reset_takes_the_whole_update_back(edited: Team) -> None:
    edited.replace("README.md", "## Run it\n", "## Run it\n\nOur text.\n")
    edited.commit()
    before = edited.state()
    edited.update(status=CONFLICTS)

    edited.git("reset", "--quiet", "--hard")

    assert edited.state() == before


def test_deleted_feature_stays_deleted(team: Team) -> None:
    shutil.rmtree(team.path / "app" / "todos")
    team.commit()

    output = team.update()

    assert not (team.path / "app" / "todos").exists()
    kept, left_out = output.partition("they stay deleted:\n")[2], output.partition("they are left out:\n")[2]
    assert kept.startswith("  app/todos/service.py\n  Show the changes: git diff ")
    assert left_out.startswith("  app/todos/labels.py\n  Show them: git diff ")
    for text, change in ((kept, "+# The new version."), (left_out, '+"""Labels."""')):
        command = text.splitlines()[1].partition(": ")[2].split()
        assert change in team.git(*command[1:])


def test_deleted_file_that_the_template_has_renamed_stays_deleted(team: Team) -> None:
    team.git("rm", "--quiet", "app/core/cgroups.py")
    team.commit()

    output = team.update()

    assert not (team.path / "app/core/control_groups.py").exists()
    assert not (team.path / "app/core/cgroups.py").exists()
    assert "they stay deleted:\n  app/core/cgroups.py\n" in output


def test_new_file_in_a_folder_with_other_deleted_files_is_added(team: Team) -> None:
    team.git("rm", "--quiet", "app/todos/models.py")
    team.commit()

    assert "left out" not in team.update()

    assert (team.path / "app/todos/labels.py").exists()


def test_new_migration_that_ends_a_second_chain_is_named_with_the_command(team: Team) -> None:
    team.write("migrations/versions/1001_notes.py", 'revision = "1001"\ndown_revision = "0004"\n')
    team.commit()

    output = team.update()

    assert (
        "The migrations have several ends: 0006, 1001. Put the new ones of the template last:\n"
        "  .venv/bin/python -m app db reparent 0006\n"
    ) in output


def test_migrations_in_one_chain_need_no_command(team: Team) -> None:
    assert "reparent" not in team.update()


def test_new_migration_whose_predecessor_was_deleted_is_named(team: Team) -> None:
    team.git("rm", "--quiet", "migrations/versions/0004_projects.py")
    team.commit()

    output = team.update()

    assert "In migrations/versions/0006_labels.py, set `down_revision` to 0003: " in output
    assert "reparent" not in output


def test_notes_of_the_releases_between_are_printed(team: Team) -> None:
    output = team.update()

    notes = output.partition("Notes of the template about what is new:\n")[2].partition("\n\nNext:")[0]
    assert notes.strip() == "## 1.1.0\n- Todos have labels:\n  run `make migrate`."


def test_next_steps_name_review_and_checks(team: Team) -> None:
    output = team.update()

    steps = output.partition("Next:\n")[2]
    assert "`git diff --cached`" in steps
    assert steps.rstrip().endswith("Run `make check test`, and commit.")
    assert team.git("log", "--format=%s") == "Generate the project", "the update commits nothing"
    assert team.path.joinpath(".git/MERGE_MSG").read_text(encoding="utf-8").startswith("Template at v1.1.0")


def test_own_settings_and_secrets_are_not_touched(team: Team) -> None:
    team.write("secrets/own", "secret")
    files = {name: team.path.joinpath(name).read_bytes() for name in (".env", "secrets/secret_key", "secrets/own")}

    team.update()

    assert {name: team.path.joinpath(name).read_bytes() for name in files} == files
    assert "secrets/own" not in team.git("ls-files")


def test_dry_run_changes_nothing_and_says_what_would_change(edited: Team) -> None:
    edited.replace("README.md", "## Run it\n", "## Run it\n\nOur text.\n")
    edited.commit()
    before, git_before = edited.state(), edited.git_state()

    output = edited.update("--dry-run", status=CONFLICTS)

    assert (edited.state(), edited.git_state()) == (before, git_before)
    assert "This would change:" in output
    assert "1 file renamed:\n  app/core/cgroups.py -> app/core/control_groups.py" in output
    assert "1 file with conflicts:\n  README.md" in output
    assert "## 1.1.0" in output
    assert "reparent 0006" in output
    assert "dry run" in output
    edited.update(status=CONFLICTS)


def test_update_to_a_branch_a_commit_and_back(team: Team, repository: Path) -> None:
    old, new = (run_git(repository, "rev-parse", tag) for tag in ("v1.0.0", "v1.1.0"))
    team.update("--version", "main")
    assert (team.record["commit"], team.record["checkout"]) == (new, "main")
    team.commit()

    output = team.update("--version", old)

    assert "This goes back to an older version." in output
    assert (team.record["commit"], team.record["checkout"]) == (old, None)
    assert "migrations/versions/0006_labels.py" in output
    assert (team.path / "migrations/versions/0006_labels.py").exists(), "migrations are kept"
    assert not (team.path / "app/todos/labels.py").exists()


def test_default_is_the_branch_in_the_record_then_the_newest_release(
    baked: Team, repository: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    run_git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    run_git(clone, "commit", "--quiet", "--allow-empty", "--message", "Later")
    run_git(clone, "tag", "v1.2.0-rc1")
    later = run_git(clone, "rev-parse", "HEAD")
    run_git(clone, "update-ref", "refs/remotes/origin/main", later)
    follower, other = Team(baked.copy(tmp_path / "a").path, clone), Team(baked.copy(tmp_path / "b").path, clone)
    follower.change_record(checkout="main")
    follower.commit()

    assert "to v1.2.0-rc1." in follower.update()
    assert "to v1.1.0." in other.update()
    assert follower.record["commit"] == later

    # A project with changes after the newest release does not go back to it.
    follower.change_record(checkout=None)
    follower.commit()
    assert "Already up to date: v1.2.0-rc1.\nThe newest release is v1.1.0." in follower.update()


def test_template_without_releases_is_followed_at_its_newest_commit(
    baked: Team, repository: Path, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    run_git(tmp_path, "clone", "--quiet", "--no-tags", str(repository), str(clone))
    run_git(clone, "checkout", "--quiet", "--detach", "HEAD~1")
    team = Team(baked.copy(tmp_path / "project").path, clone)

    team.update()

    assert team.record["commit"] == run_git(repository, "rev-parse", "main")
    assert team.record["version"] is None


def test_update_changes_nothing_in_the_repository_of_the_template(team: Team, repository: Path) -> None:
    template = Team(repository, repository)
    before = template.state(), template.git_state()

    team.update()

    assert (template.state(), template.git_state()) == before


def test_nothing_is_left_in_the_folders_of_the_user(team: Team, tmp_path: Path) -> None:
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()

    team.update(HOME=str(tmp_path / "home"), TMPDIR=str(tmp_path / "tmp"))

    assert list((tmp_path / "home").iterdir()) == list((tmp_path / "tmp").iterdir()) == []
    assert team.git("worktree", "list").count("\n") == 0
    assert team.git("for-each-ref", "--format=%(refname)") == "refs/heads/main"
    assert not (team.path / ".git" / "FETCH_HEAD").exists()
