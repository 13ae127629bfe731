"""An update that is interrupted leaves the files as before or as after the merge, and the next update works."""

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.programs import UV, person_environment
from tests.support.serving import wait_until
from tests.update.teams import NO_SETTINGS, REFUSED, Team

PATIENCE_SECONDS = 120
GIT = shutil.which("git") or "git"
# Does ACTION at the git command with the number NUMBER, or at the merge in the project.
WRAPPER = """\
#!/bin/sh
number=$(($(cat '{folder}/count' 2> /dev/null || echo 0) + 1))
echo $number > '{folder}/count'
case " $*" in *cherry-pick*) [ "$PWD" = '{project}' ] && number=merge ;; esac
if [ $number = '{at}' ]; then
    {action}
fi
exec '{git}' "$@"
"""
# Ends git when it has written some of the files.
FILTER = """\
#!/bin/sh
echo >> '{folder}/written'
if [ $(wc -l < '{folder}/written') = {count} ]; then
    [ ! -e '{folder}/kills-updater' ] || kill -9 $(cat '{folder}/updater')
    kill -9 $(cat '{folder}/git')
    sleep 1
fi
exec cat
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("bin", "tmp"):
        (tmp_path / name).mkdir()
    return tmp_path


@dataclass(frozen=True)
class Prepared:
    """A project, and its states before and after an update."""

    team: Team
    states: list[dict[str, str]]


@pytest.fixture(scope="module")
def prepared(baked: Team, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A project with a conflict, a renamed file with an edit, and files that are not in git."""
    folder = tmp_path_factory.mktemp("prepared")
    team = baked.copy(folder / "before")
    team.replace("README.md", "## Run it\n\n", "## Run it\n\nOur text.\n\n")
    team.replace("app/core/cgroups.py", "import os\n", "import os\n\nOURS = 1\n")
    team.write("app/todos/notes.txt", "ours\n")
    team.write("empty/.keep", "")
    team.git("add", "--all", ":!app/todos/notes.txt")
    team.git("commit", "--quiet", "--message", "Edit")
    team.write("ours.txt", "ours\n")
    updated = team.copy(folder / "after")
    updated.update(status=1)
    return Prepared(team, [team.state(), updated.state()])


@pytest.fixture
def edited(prepared: Prepared, tmp_path: Path) -> Team:
    return prepared.team.copy(tmp_path / "project")


@pytest.fixture
def states(prepared: Prepared) -> list[dict[str, str]]:
    return prepared.states


def wrap_git(folder: Path, project: Path, at: int | str, action: str) -> None:
    script = WRAPPER.format(folder=folder, project=project, at=at, action=action, git=GIT)
    (folder / "bin" / "git").write_text(script, encoding="utf-8")
    (folder / "bin" / "git").chmod(0o755)


def run_interrupted(team: Team, folder: Path) -> int:
    """Update with the wrapped git, and return the exit status once git has ended."""
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    process = subprocess.Popen(
        team.command(),
        cwd=team.path,
        env=person_environment(**NO_SETTINGS, PATH=path, TMPDIR=str(folder / "tmp")),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (folder / "updater").write_text(str(process.pid), encoding="utf-8")
    status = process.wait(PATIENCE_SECONDS)
    wait_until(lambda: not (folder / "running").exists(), PATIENCE_SECONDS, lambda: "git ends")
    return status


def check_next_update(team: Team, states: list[dict[str, str]], folder: Path) -> None:
    """Check that the next update undoes the interrupted one, if need be, and works."""
    if team.state() != states[1]:
        # Refused after the files were restored.
        team.update("--version", "unknown", status=REFUSED)
        assert team.state() == states[0]
        team.update(status=1)
        assert team.state() == states[1]
    else:
        assert "not committed" in team.update(status=REFUSED)
        assert team.state() == states[1]
    names = {path.name for path in (team.path / ".git").iterdir()}
    assert {name for name in names if "template" in name or name.endswith(".lock")} == set()


SIGNALS = {"SIGINT": "INT", "SIGTERM": "TERM", "SIGHUP": "HUP", "SIGKILL": "KILL"}
FEW = [1, 12, 45]


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("at", [*FEW, *(pytest.param(number, marks=pytest.mark.slow) for number in range(4, 100, 32))])
def test_signal_before_a_command_of_git(
    edited: Team, states: list[dict[str, str]], folder: Path, at: int, name: str
) -> None:
    wrap_git(folder, edited.path, at, f"kill -{SIGNALS[name]} $PPID; sleep 0.1")

    status = run_interrupted(edited, folder)

    assert edited.state() in states
    if name != "SIGKILL":
        assert list((folder / "tmp").iterdir()) == []
        assert status in (128 + signal.Signals[name].value, 1)
    check_next_update(edited, states, folder)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signal_during_the_merge_waits_for_its_end(
    edited: Team, states: list[dict[str, str]], folder: Path, name: str
) -> None:
    # To the whole group, as Ctrl-C does, and to the updater alone.
    action = f"kill -{SIGNALS[name]} -$(cat '{folder}/updater'); kill -{SIGNALS[name]} $PPID; sleep 0.5"
    wrap_git(folder, edited.path, "merge", action)

    assert run_interrupted(edited, folder) == 1

    assert edited.state() == states[1]
    assert list((folder / "tmp").iterdir()) == []
    check_next_update(edited, states, folder)


def test_updater_killed_during_the_merge_leaves_the_merge(
    edited: Team, states: list[dict[str, str]], folder: Path
) -> None:
    action = f"touch '{folder}/running'; kill -9 $PPID; sleep 2; '{GIT}' \"$@\"; rm '{folder}/running'; exit 1"
    wrap_git(folder, edited.path, "merge", action)

    assert run_interrupted(edited, folder) == -signal.SIGKILL

    assert edited.state() == states[1]
    check_next_update(edited, states, folder)


def test_next_update_waits_for_git_of_a_killed_one(edited: Team, states: list[dict[str, str]], folder: Path) -> None:
    release = folder / "release"
    action = f"""touch '{folder}/running'; kill -9 $PPID
    while [ ! -e '{release}' ]; do sleep 0.1; done; '{GIT}' \"$@\"; rm '{folder}/running'; exit 1"""
    wrap_git(folder, edited.path, "merge", action)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    process = subprocess.Popen(
        edited.command(), cwd=edited.path, env=person_environment(**NO_SETTINGS, PATH=path), start_new_session=True
    )
    try:
        assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL

        output = edited.update(status=REFUSED)

        assert "Another update of this project is running." in output
        assert edited.state() == states[0]
    finally:
        release.touch()
    wait_until(lambda: not (folder / "running").exists(), PATIENCE_SECONDS, lambda: "git ends")
    check_next_update(edited, states, folder)


@pytest.fixture
def writes(edited: Team, folder: Path) -> int:
    """Let each file that git writes in the project start a program, and return the number of these files."""
    script = folder / "filter"
    edited.git("config", "filter.slow.smudge", str(script))
    edited.git("config", "filter.slow.clean", "cat")
    (edited.path / ".git" / "info" / "attributes").write_text("* filter=slow\n", encoding="utf-8")
    wrap_git(folder, edited.path, "merge", f"echo $$ > '{folder}/git'")
    return 13


@pytest.mark.parametrize("kills_updater", [False, True], ids=["git", "both"])
@pytest.mark.parametrize("count", [1, 6, *(pytest.param(number, marks=pytest.mark.slow) for number in (3, 12))])
def test_git_killed_while_it_writes_files(
    edited: Team, states: list[dict[str, str]], folder: Path, writes: int, count: int, *, kills_updater: bool
) -> None:
    (folder / "filter").write_text(FILTER.format(folder=folder, count=count), encoding="utf-8")
    (folder / "filter").chmod(0o755)
    if kills_updater:
        (folder / "kills-updater").touch()

    status = run_interrupted(edited, folder)

    assert len((folder / "written").read_text(encoding="utf-8")) >= count, "git was killed"
    assert count <= writes
    if kills_updater:
        assert status == -signal.SIGKILL
        assert edited.state() not in states, "git was killed in the middle"
        assert (edited.path / ".git" / "index.lock").exists()
    else:
        assert status == REFUSED
        assert edited.state() == states[0], "it is undone at once"
    wait_until(lambda: not is_locked(edited), PATIENCE_SECONDS, lambda: "the filter ends")
    # A dry run changes nothing, also not this.
    between = edited.state()
    edited.update("--dry-run", status=REFUSED if kills_updater else 1)
    assert edited.state() == between
    check_next_update(edited, states, folder)


def is_locked(team: Team) -> bool:
    return "is running" in team.run_update("--version", "unknown", "--dry-run").stderr


def test_files_that_the_team_edits_after_an_interruption_are_left(
    edited: Team, states: list[dict[str, str]], folder: Path, writes: int
) -> None:
    (folder / "filter").write_text(FILTER.format(folder=folder, count=writes - 1), encoding="utf-8")
    (folder / "filter").chmod(0o755)
    (folder / "kills-updater").touch()
    run_interrupted(edited, folder)
    wait_until(lambda: not is_locked(edited), PATIENCE_SECONDS, lambda: "the filter ends")
    edited.write("docs/mail.md", "Ours\n")
    edited.write("app/todos/labels.py", "OURS = 1\n")

    done = edited.run_update()

    assert done.returncode == REFUSED
    assert "have been edited since, and were left as they are: app/todos/labels.py, docs/mail.md." in done.stdout
    assert "not committed: docs/mail.md" in done.stderr
    assert edited.read("docs/mail.md") == "Ours\n"
    assert edited.read("app/todos/labels.py") == "OURS = 1\n"
    edited.git("checkout", "docs/mail.md")
    (edited.path / "app/todos/labels.py").unlink()
    assert edited.state() == states[0]


def test_work_after_a_killed_update_is_not_undone(edited: Team, states: list[dict[str, str]], folder: Path) -> None:
    action = f"touch '{folder}/running'; kill -9 $PPID; sleep 1; '{GIT}' \"$@\"; rm '{folder}/running'; exit 1"
    wrap_git(folder, edited.path, "merge", action)
    run_interrupted(edited, folder)
    edited.write("README.md", "Resolved\n")
    edited.commit("Resolve")
    state = edited.state()

    assert "Already up to date" in edited.update()

    assert edited.state() == state
    assert not (edited.path / ".git" / "template-update.json").exists()


def test_lock_of_another_command_is_not_removed(edited: Team, folder: Path, writes: int) -> None:
    (folder / "filter").write_text(FILTER.format(folder=folder, count=3), encoding="utf-8")
    (folder / "filter").chmod(0o755)
    (folder / "kills-updater").touch()
    run_interrupted(edited, folder)
    wait_until(lambda: not is_locked(edited), PATIENCE_SECONDS, lambda: "the filter ends")
    lock = edited.path / ".git" / "index.lock"
    later = time.time() + 3600
    os.utime(lock, (later, later))

    output = edited.update(status=REFUSED)

    assert f"Another git command is running, or has left {lock}." in output
    assert lock.exists()


@pytest.mark.parametrize("at", ["merge", 30])
def test_ctrl_c_of_make_update(edited: Team, states: list[dict[str, str]], folder: Path, at: str | int) -> None:
    """make, the launcher, uv and the updater get the signal together, and nothing of them is left."""
    wrap_git(folder, edited.path, at, f"touch '{folder}/reached'; sleep 3")
    # Otherwise make installs uv into the project.
    (folder / "bin" / "uv").symlink_to(UV)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    process = subprocess.Popen(
        ["make", "update"],
        cwd=edited.path,
        env=person_environment(**NO_SETTINGS) | {"PATH": path, "TMPDIR": str(folder / "tmp")},
        start_new_session=True,
    )
    wait_until(lambda: (folder / "reached").exists() or process.poll() is not None, PATIENCE_SECONDS, str)
    assert process.poll() is None

    os.killpg(process.pid, signal.SIGINT)

    assert process.wait(PATIENCE_SECONDS) != 0
    # uv keeps an empty file with its lock.
    wait_until(lambda: list((folder / "tmp").glob("[!u]*")) == [], PATIENCE_SECONDS, lambda: "the temporary files go")
    assert edited.state() == states[1 if at == "merge" else 0]
    check_next_update(edited, states, folder)


def test_reader_of_the_output_that_ends_early_stops_the_update(edited: Team, states: list[dict[str, str]]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            edited.command(),
            cwd=edited.path,
            env=person_environment(**NO_SETTINGS),
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)

    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    assert edited.state() == states[0]
