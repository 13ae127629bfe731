"""Renders a commit of the template, in a separate process, because the hooks print and may fail."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from updating.errors import RefusalError
from updating.git import Repository
from updating.record import quote_for_template


@dataclass(frozen=True)
class Rendered:
    """A rendered project, and the answers of all options."""

    folder: Path
    answers: dict[str, str]


def export(template: Repository, commit: str, folder: Path) -> None:
    """Write the files of a commit to a new folder; nothing is written in the repository of the template."""
    folder.mkdir()
    index = {"GIT_INDEX_FILE": str(folder.with_suffix(".index"))}
    template.run("read-tree", commit, variables=index)
    template.run("checkout-index", "--all", f"--prefix={folder}/", variables=index)


def read_options(template: Repository, commit: str, directory: str | None) -> dict[str, Any]:
    """Return the options of a commit of the template with their defaults or choices."""
    path = f"{directory}/cookiecutter.json" if directory else "cookiecutter.json"
    text = template.find("show", f"{commit}:{path}")
    if text is None:
        raise RefusalError(f"The template has no {path} in its commit {commit[:12]}.")
    try:
        options: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise RefusalError(f"{path} of the template cannot be read in its commit {commit[:12]}: {error}") from error
    return {name: value for name, value in options.items() if not name.startswith("_")}


class Rendering:
    """A running process that renders the template with answers."""

    def __init__(self, source: Path, answers: dict[str, str], folder: Path) -> None:
        """Render the template in `source` with answers in the form that cookiecutter renders."""
        for name in ("tmp", "out"):
            (folder / name).mkdir(parents=True)
        self._result = folder / "result.json"
        self._output = folder / "output"
        call = {"source": str(source), "answers": answers, "folder": str(folder)}
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "updating.rendering"],
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(folder / "tmp")},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )
        if self.process.stdin:
            self.process.stdin.write(json.dumps(call).encode())
            self.process.stdin.close()

    def wait(self, what: str) -> Rendered:
        if self.process.wait() != 0:
            said = self._output.read_text(encoding="utf-8", errors="replace").strip()
            raise RefusalError(f"{what} cannot be generated with these answers:\n{said}")
        result = json.loads(self._result.read_text(encoding="utf-8"))
        answers = {name: quote_for_template(value) for name, value in result["answers"].items()}
        return Rendered(Path(result["project"]), answers)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def start_rendering(source: Path, answers: dict[str, str], folder: Path) -> Iterator[Rendering]:
    rendering = Rendering(source, answers, folder)
    try:
        yield rendering
    finally:
        rendering.end()


def _render(source: Path, answers: dict[str, str], folder: Path) -> None:
    # Imported here, because only this process needs it.
    from cookiecutter.exceptions import CookiecutterException
    from cookiecutter.main import cookiecutter

    # The message that a hook has failed would follow the sentence of the hook.
    logging.disable()
    replay = folder / "replay"
    config = folder / "config.yaml"
    # JSON is also YAML. cookiecutter would write into the home folder of the user.
    config.write_text(json.dumps({"cookiecutters_dir": str(folder / "templates"), "replay_dir": str(replay)}))
    try:
        project = cookiecutter(
            str(source),
            no_input=True,
            extra_context=answers,
            output_dir=str(folder / "out"),
            config_file=str(config),
        )
    except (CookiecutterException, ValueError) as error:
        sys.exit(str(error) if "hook" not in str(error).lower() else 1)
    (context,) = (json.loads(path.read_text(encoding="utf-8"))["cookiecutter"] for path in replay.iterdir())
    public = {name: value for name, value in context.items() if not name.startswith("_")}
    result = {"project": project, "answers": public}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    call = json.load(sys.stdin)
    _render(Path(call["source"]), call["answers"], Path(call["folder"]))
