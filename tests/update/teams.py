"""Projects of a team: baked from a version of the template, committed, edited and updated."""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.programs import person_environment
from tests.support.projects import RECORD, run_cookiecutter
from tests.support.template import ROOT, list_files

UPDATER = ROOT / "tools" / "update.py"
# The settings of the user, such as signed commits, must not change the outcome.
NO_SETTINGS = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
IDENTITY = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
MERGED, CONFLICTS, REFUSED = 0, 1, 2


def run_git(folder: Path, *arguments: str) -> str:
    command = ["git", *IDENTITY, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=person_environment(**NO_SETTINGS), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"git {arguments}: {done.stdout}{done.stderr}"
    return done.stdout.removesuffix("\n")


def commit_all(folder: Path, message: str, *, tag: str = "") -> str:
    run_git(folder, "add", "--all")
    run_git(folder, "commit", "--quiet", "--message", message)
    if tag:
        run_git(folder, "tag", tag)
    return run_git(folder, "rev-parse", "HEAD")


def copy_template(folder: Path) -> None:
    """Copy the template with its changelog as a clone would contain it."""
    for path in list_files("cookiecutter.json", "hooks", "{{cookiecutter.project_slug}}", "CHANGELOG.md", "tools"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)


def replace(file: Path, old: str, new: str) -> None:
    """Replace the first occurrence."""
    text = file.read_text(encoding="utf-8")
    assert old in text, f"{file} does not contain {old!r}"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def bake_team(repository: Path, folder: Path, version: str, *options: str, **answers: str) -> "Team":
    """Bake a version, and commit the project."""
    folder.mkdir(exist_ok=True)
    answers.setdefault("project_slug", "my-service")
    done = run_cookiecutter(f"git+{repository.as_uri()}", folder, "--checkout", version, *options, **answers)
    assert done.returncode == 0, done.stdout + done.stderr
    project = folder / "out" / answers["project_slug"]
    run_git(project, "init", "--quiet", "--initial-branch=main")
    team = Team(project, repository)
    commit_all(project, "Generate the project")
    return team


@dataclass(frozen=True)
class Team:
    path: Path
    repository: Path

    def copy(self, folder: Path) -> "Team":
        return Team(shutil.copytree(self.path, folder, symlinks=True), self.repository)

    def git(self, *arguments: str) -> str:
        return run_git(self.path, *arguments)

    def commit(self, message: str = "Edit") -> str:
        return commit_all(self.path, message)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(UPDATER), "--template", str(self.repository), "--project", ".", *arguments]

    def run_update(self, *arguments: str, folder: str = ".", **variables: str) -> subprocess.CompletedProcess[str]:
        """Update, started in a folder of the project."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.path / folder,
            env=person_environment(**NO_SETTINGS | variables),
            capture_output=True,
            text=True,
            check=False,
        )

    def update(self, *arguments: str, status: int = MERGED, **variables: str) -> str:
        done = self.run_update(*arguments, folder=".", **variables)
        assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stderr if status == REFUSED else done.stdout

    def read(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def write(self, name: str, text: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text, encoding="utf-8")

    def replace(self, name: str, old: str, new: str) -> None:
        replace(self.path / name, old, new)

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.read(RECORD))
        return record

    def change_record(self, **entries: object) -> None:
        self.write(RECORD, json.dumps(self.record | entries, indent=2))

    def tracked(self) -> dict[str, bytes]:
        """Return the content of the files in the index and their modes."""
        names = self.git("ls-files", "-z").split("\0")[:-1]
        return {name: (self.path / name).read_bytes() + bytes([_mode(self.path / name)]) for name in sorted(set(names))}

    def state(self) -> dict[str, str]:
        """Return everything that an update may change: all files, folders and modes, the index, and HEAD."""
        files = {name: value for name, value in _walk(self.path) if name != ".git" and not name.startswith(".git/")}
        index = self.git("ls-files", "--stage", "-z")
        return files | {"index": index, "HEAD": self.git("rev-parse", "HEAD")}

    def git_state(self) -> Mapping[str, str]:
        """Return the files in the folder of git, without the cache of times in the index."""
        return {name: value for name, value in _walk(self.path / ".git") if name != "index"}


def _mode(path: Path) -> int:
    return path.stat().st_mode & stat.S_IXUSR


def _walk(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            yield name, "folder"
        else:
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            yield name, f"{path.lstat().st_mode & 0o100:o} {hashlib.sha256(content).hexdigest()}"
