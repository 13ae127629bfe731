"""Projects that the tests bake."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import yaml

from tests.support.programs import person_environment, run_program
from tests.support.template import is_copied

# Enough for a project's whole test suite on a busy machine; below pytest-timeout, so that a failure shows the output.
TIMEOUT_SECONDS = 1800
# The record of the template and the answers.
RECORD = ".cruft.json"


def run_cookiecutter(
    template: Path | str, folder: Path, *options: str, **answers: str
) -> subprocess.CompletedProcess[str]:
    """Bake into `folder/out` with the cookiecutter command; its own files stay in `folder/home`."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    # cookiecutter leaves its rendered hooks in the folder for temporary files.
    (home / "tmp").mkdir(exist_ok=True)
    config = {"cookiecutters_dir": str(home / "templates"), "replay_dir": str(home / "replay")}
    (home / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return subprocess.run(
        [
            *(sys.executable, "-m", "cookiecutter", "--config-file", str(home / "config.yaml"), *options),
            *(() if "--replay-file" in options else ("--no-input",)),  # cookiecutter refuses both options together
            *("--output-dir", str(folder / "out"), str(template)),
            *(f"{option}={answer}" for option, answer in answers.items()),
        ],
        env=person_environment(TMPDIR=str(home / "tmp")),
        capture_output=True,
        text=True,
    )


@cache
def list_secrets(compose: str) -> set[str]:
    return {Path(secret["file"]).as_posix() for secret in yaml.safe_load(compose)["secrets"].values()}


@dataclass(frozen=True)
class BakedProject:
    path: Path
    answers: dict[str, str]

    def list_files(self) -> dict[str, Path]:
        return {path.relative_to(self.path).as_posix(): path for path in self.path.rglob("*") if not path.is_dir()}

    @cached_property
    def secrets(self) -> set[str]:
        """The files with secrets that the hook creates; they differ in each bake."""
        compose = self.path / "compose.yaml"
        return {".env"} | (list_secrets(compose.read_text(encoding="utf-8")) if compose.exists() else set())

    def list_texts(self) -> dict[str, str]:
        """Return the text of every file that cookiecutter has rendered, by name."""
        return {
            name: path.read_text(encoding="utf-8")
            for name, path in self.list_files().items()
            if not is_copied(name) and name not in {*self.secrets, RECORD}
        }

    def read(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def run(self, command: Sequence[str], **variables: str) -> str:
        """Run a command in the project, and return its output; a failure shows the output."""
        done = run_program(command, TIMEOUT_SECONDS, folder=self.path, env=person_environment(**variables))
        assert done.returncode == 0, f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout[-20000:]}"
        return done.stdout


Bake = Callable[..., BakedProject]
