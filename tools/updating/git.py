"""Runs git, unaffected by the settings of the user and by variables that name another repository."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from updating.errors import RefusalError

OLDEST_VERSION = (2, 34)
# Other variables of git would name another repository, as in a hook, or change the output.
KEPT_VARIABLES = (
    "GIT_ASKPASS",
    "GIT_CONFIG_",
    "GIT_EXEC_PATH",
    "GIT_HTTP",
    "GIT_SSH",
    "GIT_SSL",
    "GIT_TERMINAL_PROMPT",
)
ISOLATED = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "GIT_CONFIG_COUNT": "0"}
IDENTITY = {
    f"GIT_{role}_{field}": value
    for role in ("AUTHOR", "COMMITTER")
    for field, value in (("NAME", "Template"), ("EMAIL", "template@localhost"))
}
# Hooks, and programs that git starts in the background, would run outside of the time in which signals are held.
SETTINGS = (
    *("-c", f"core.hooksPath={os.devnull}"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "gc.auto=0"),
    *("-c", "maintenance.auto=false"),
    *("-c", "submodule.recurse=false"),
    *("-c", "protocol.file.allow=always"),
)


class GitError(Exception):
    """A git command failed; the text is its output."""


def make_environment(**variables: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith(KEPT_VARIABLES)
    }
    # Without optional locks, a command that only reads does not write the index.
    return kept | IDENTITY | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"} | variables


class Repository:
    """A repository and the folder in which its commands run."""

    def __init__(self, folder: Path, *, isolated: bool = False, git_dir: Path | None = None) -> None:
        """With `isolated`, git reads neither the settings of the user nor those of the machine."""
        self.folder = folder
        self._variables = (ISOLATED if isolated else {}) | ({"GIT_DIR": str(git_dir)} if git_dir else {})

    def command(self, *arguments: str) -> list[str]:
        return ["git", *SETTINGS, "--literal-pathspecs", *arguments]

    def environment(self, variables: Mapping[str, str] | None = None) -> dict[str, str]:
        return make_environment(**self._variables, **(variables or {}))

    def attempt(
        self, *arguments: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run git, and return its output also if it fails."""
        command = self.command(*arguments)
        environment = self.environment(variables)
        return subprocess.run(command, cwd=self.folder, env=environment, input=stdin, capture_output=True, check=False)

    def run(self, *arguments: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None) -> bytes:
        done = self.attempt(*arguments, stdin=stdin, variables=variables)
        if done.returncode != 0:
            output = os.fsdecode(done.stderr + done.stdout).strip()
            raise GitError(f"git {arguments[0]} failed with {done.returncode}: {output}")
        return done.stdout

    def read(self, *arguments: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None) -> str:
        """Return the output without its line break."""
        return os.fsdecode(self.run(*arguments, stdin=stdin, variables=variables)).removesuffix("\n")

    def find(self, *arguments: str) -> str | None:
        """Return the output, or None if git fails."""
        done = self.attempt(*arguments)
        return os.fsdecode(done.stdout).removesuffix("\n") if done.returncode == 0 else None

    def list(self, *arguments: str, variables: Mapping[str, str] | None = None) -> Sequence[str]:
        """Return the items of an output that is separated by null bytes."""
        return os.fsdecode(self.run(*arguments, variables=variables)).split("\0")[:-1]

    def path(self, name: str) -> Path:
        """Return the path of a file in the folder of git."""
        return (self.folder / self.read("rev-parse", "--git-path", name)).resolve()

    def entries(self, tree: str) -> dict[str, tuple[str, str]]:
        """Return the mode and the object of each file in a tree."""
        found = {}
        for line in self.list("ls-tree", "-r", "-z", "--full-tree", tree):
            head, _, name = line.partition("\t")
            mode, _, sha = head.split(" ")
            found[name] = (mode, sha)
        return found


def refuse_old_git() -> None:
    try:
        output = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RefusalError("git is missing: install git 2.34 or later.") from error
    numbers = tuple(int(part) for part in output.split()[2].split(".")[:2])
    if numbers < OLDEST_VERSION:
        raise RefusalError(f"This is {output.strip()}, but an update needs git 2.34 or later.")
