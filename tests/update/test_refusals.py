"""Updates that are refused with a sentence, before anything is changed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.update.teams import REFUSED, Team, run_git


def refuse(team: Team, *arguments: str, **variables: str) -> str:
    """Update, and return the refusal; check that nothing has changed."""
    before = team.state()
    output = team.update(*arguments, status=REFUSED, **variables)
    assert team.state() == before
    assert output.startswith("Not updated. ")
    assert "Traceback" not in output
    return output


def test_tracked_changes(team: Team) -> None:
    team.write("README.md", "Ours\n")

    assert "not committed: README.md. Commit or stash them" in refuse(team)


def test_staged_changes(team: Team) -> None:
    team.write("ours.md", "Ours\n")
    team.git("add", "ours.md")

    assert "not committed: ours.md" in refuse(team)


@pytest.mark.parametrize("is_ignored", [False, True])
def test_untracked_file_that_the_update_would_write(team: Team, *, is_ignored: bool) -> None:
    team.write("app/todos/labels.py", "OURS = 1\n")
    if is_ignored:
        team.path.joinpath(".git/info/exclude").write_text("labels.py\n", encoding="utf-8")

    assert "would overwrite these files, which are not in git: app/todos/labels.py" in refuse(team)
    assert "app/todos/labels.py" in refuse(team, "--dry-run")


def test_other_untracked_files_are_no_reason_to_refuse(team: Team) -> None:
    team.write("notes.txt", "Ours\n")

    team.update()

    assert team.read("notes.txt") == "Ours\n"
    assert "?? notes.txt" in team.git("status", "--porcelain")


@pytest.mark.parametrize("operation", ["merge", "rebase", "cherry-pick", "revert"])
def test_operation_in_progress(team: Team, operation: str) -> None:
    first = team.git("rev-parse", "HEAD")
    team.replace("README.md", "# My Service", "# Ours")
    second = team.commit()
    team.git("checkout", "--quiet", "-b", "other", first)
    team.replace("README.md", "# My Service", "# Theirs")
    team.commit()
    arguments = {"rebase": ["rebase", "main"], "revert": ["revert", "--no-edit", second]}
    with pytest.raises(AssertionError):
        team.git(*arguments.get(operation, [operation, "main"]))

    assert f"A {operation} is in progress here. Finish or abort it" in refuse(team)


def test_folder_that_is_no_repository(team: Team) -> None:
    shutil.rmtree(team.path / ".git")

    output = team.update(status=REFUSED)
    assert "is not in a git repository" in output
    assert "git init" in output


def test_repository_without_a_commit(team: Team) -> None:
    shutil.rmtree(team.path / ".git")
    team.git("init", "--quiet")

    assert "no commit yet. Commit all files" in team.update(status=REFUSED)


def remove_record(team: Team) -> None:
    team.path.joinpath(".cruft.json").unlink()


RECORDS: dict[str, tuple[Callable[[Team], object], str]] = {
    "missing": (remove_record, "There is no .cruft.json"),
    "no-json": (lambda team: team.write(".cruft.json", "{"), "is not a record of a template"),
    "no-answers": (lambda team: team.change_record(context={}), "is not a record of a template"),
    "no-commit": (lambda team: team.change_record(commit=None), "from a copy without git. Set `commit` in it"),
    "wrong-commit": (lambda team: team.change_record(commit="v1"), "must be the hash of a commit"),
    "unknown-commit": (lambda team: team.change_record(commit="1" * 40), "make update TEMPLATE=ADDRESS"),
    "no-text": (
        lambda team: team.change_record(context={"cookiecutter": {"web_pages": True}}),
        "in .cruft.json in quotes: web_pages",
    ),
}


@pytest.mark.parametrize(("change", "sentence"), RECORDS.values(), ids=RECORDS)
def test_unusable_record(team: Team, change: Callable[[Team], object], sentence: str) -> None:
    change(team)
    team.commit()

    assert sentence in refuse(team)


def test_record_that_is_not_committed(team: Team) -> None:
    team.git("rm", "--quiet", "--cached", ".cruft.json")
    team.git("commit", "--quiet", "--message", "Forget")

    assert "Commit .cruft.json first" in refuse(team)


def test_unknown_version_is_refused_with_the_newest_releases(team: Team) -> None:
    assert "has no tag, branch or commit 'v9'. Its newest releases are v1.1.0, v1.0.0." in refuse(
        team, "--version", "v9"
    )
    assert "'HEAD~1'" in refuse(team, "--version", "HEAD~1")


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ("colour=red", "has no option colour. Its options are project_name, project_slug, "),
        ("database", "'database' in ANSWERS is not of the form name=value."),
        ("description='a", "a quote without its end"),
        ("ci=none ci=github", "two values for ci"),
        ("ci=jenkins", "has no choice 'jenkins' for ci. Choose one of github, gitlab, none"),
        ("domain_name=No_Domain", "domain_name is 'No_Domain', but it must be a domain name like example.com"),
        ("description=''", "description is '', but it must be 1 to 200 printable characters"),
    ],
)
def test_answers(team: Team, answers: str, sentence: str) -> None:
    assert sentence in refuse(team, "--answers", answers)


def test_choice_that_the_new_version_does_not_have(team: Team) -> None:
    answers = team.record["context"]["cookiecutter"] | {"license": "Proprietary"}
    team.change_record(context={"cookiecutter": answers})
    team.commit()

    output = refuse(team)
    assert "The template at v1.1.0 has no choice 'Proprietary' for license. Choose one of MIT, Apache-2.0" in output
    assert "make update ANSWERS='license=MIT'" in output
    team.update("--version", "v1.1.0", "--answers", "license=MIT")


def test_hidden_changes(team: Team) -> None:
    team.git("update-index", "--assume-unchanged", "README.md")

    assert "assume-unchanged or skip-worktree): README.md" in refuse(team)


def test_git_is_missing_or_too_old(team: Team, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    assert "git is missing: install git 2.34 or later." in refuse(team, PATH=str(tmp_path / "bin"))

    git = tmp_path / "bin" / "git"
    git.write_text("#!/bin/sh\necho git version 2.20.1\n", encoding="utf-8")
    git.chmod(0o755)
    assert "This is git version 2.20.1, but an update needs git 2.34 or later." in refuse(team, PATH=str(git.parent))


def test_repository_of_the_template_without_a_template(team: Team, tmp_path: Path) -> None:
    run_git(tmp_path, "init", "--quiet", "other")
    run_git(tmp_path / "other", "commit", "--quiet", "--allow-empty", "--message", "Empty")
    other = Team(team.path, tmp_path / "other")
    commit = run_git(tmp_path / "other", "rev-parse", "HEAD")
    team.change_record(commit=commit)
    team.commit()

    assert "has no cookiecutter.json in its commit" in refuse(other, "--version", commit, "--answers", "ci=none")


def test_help_describes_each_option(team: Team) -> None:
    output = team.update("--help")

    for option in ("--template", "--project", "--version", "--answers", "--dry-run", "Exit status"):
        assert option in output
