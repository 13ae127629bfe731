import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import yaml
from jinja2 import Environment
from pytest_cookies.plugin import Cookies

from tests.programs import run_program

ROOT = Path(__file__).parents[1]
UV = os.environ.get("UV") or shutil.which("uv") or "uv"  # uv itself tells its children where it is.
SERVICE = "{{cookiecutter.project_slug}}"
CONTEXT = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
CHOICES: dict[str, list[str]] = {
    name: value for name, value in CONTEXT.items() if name[0] != "_" and type(value) is list
}
# Options that fill in a version, a name or a file of their own, and change nothing of what the others do.
LABELS = ("python_version", "ci", "license")


def list_variants() -> list[dict[str, str]]:
    """Every combination of the options that decide how the service is built, each with every label.

    The labels take turns, so that each of their combinations is there as well, in some project.
    """
    structure = {option: choices for option, choices in CHOICES.items() if option not in LABELS}
    structures = [dict(zip(structure, choices, strict=True)) for choices in product(*structure.values())]
    turns = max(len(CHOICES[label]) for label in LABELS)
    variants = []
    for (number, chosen), turn in product(enumerate(structures), range(turns)):
        shifts = (turn, turn + number, turn + number // turns)
        labels = {
            label: CHOICES[label][shift % len(CHOICES[label])] for label, shift in zip(LABELS, shifts, strict=True)
        }
        variants.append(chosen | labels)
    return variants


VARIANTS = list_variants()

# A bake's whole suite on a busy machine; less than pytest-timeout's, so that what it printed is told.
TIMEOUT_SECONDS = 1800

# What a person's shell has; nothing of the environment that these tests run in.
PASSED_ON = ("HOME", "LANG", "TMPDIR", "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy")


def read_table(hook: str, name: str) -> dict[str, tuple[str, ...]]:
    return dict(read_literal(hook, name))


def read_literal(hook: str, name: str) -> Any:  # noqa: ANN401  # whatever is written there
    """Return a constant of a hook; a hook cannot be imported before cookiecutter has rendered it."""
    tree = ast.parse((ROOT / "hooks" / hook).read_text(encoding="utf-8"))
    (table,) = (
        statement.value
        for statement in tree.body
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and statement.target.id == name
        if statement.value
    )
    return ast.literal_eval(table)


def is_copied(name: str) -> bool:
    """Whether cookiecutter copies a file of the service without rendering it."""
    return any(fnmatch(name, pattern) for pattern in CONTEXT["_copy_without_render"])


def list_files(*folders: str, ignored: bool = False) -> list[Path]:
    """List what a commit of the work tree would hold; or, instead, what git ignores."""
    kind = ["--others", "--ignored"] if ignored else ["--cached", "--others"]
    command = ["git", "ls-files", "-z", *kind, "--exclude-standard", "--", *folders]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in sorted(set(listing.split("\0")) - {""}) if (ROOT / (path := Path(name))).exists()]


def person_environment(**variables: str) -> dict[str, str]:
    """Return the environment of a person who runs the commands of a project in a shell of their own."""
    kept = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(("UV_", "PIP_"))}
    kept.pop("UV_PROJECT_ENVIRONMENT", None)
    path = [folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != Path(sys.prefix, "bin")]
    return kept | {"PATH": os.pathsep.join(path)} | variables


def run_cookiecutter(template: Path, folder: Path, *options: str, **answers: str) -> subprocess.CompletedProcess[str]:
    """Bake into `folder/out` with the command, as a person does; what it remembers stays in `folder/home`."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    # cookiecutter leaves every hook that it has rendered in the folder for temporary files.
    (home / "tmp").mkdir(exist_ok=True)
    config = {"cookiecutters_dir": str(home / "templates"), "replay_dir": str(home / "replay")}
    (home / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return subprocess.run(
        [
            *(sys.executable, "-m", "cookiecutter", "--config-file", str(home / "config.yaml"), *options),
            *(() if "--replay-file" in options else ("--no-input",)),  # cookiecutter refuses both together
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
        """What the hook makes, and no other bake has."""
        compose = self.path / "compose.yaml"
        return {".env"} | (list_secrets(compose.read_text(encoding="utf-8")) if compose.exists() else set())

    def list_texts(self) -> dict[str, str]:
        """Every file that cookiecutter has rendered."""
        return {
            name: path.read_text(encoding="utf-8")
            for name, path in self.list_files().items()
            if not is_copied(name) and name not in self.secrets
        }

    def read(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def run(self, command: Sequence[str], **variables: str) -> str:
        """Run a command as the project's user would; what it printed is in the failure's message."""
        done = run_program(command, TIMEOUT_SECONDS, folder=self.path, env=person_environment(**variables))
        assert done.returncode == 0, f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout[-20000:]}"
        return done.stdout


Bake = Callable[..., BakedProject]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the template as a clone would have it, so that other tests can work in place meanwhile."""
    copy = tmp_path_factory.mktemp("template")
    for path in list_files("cookiecutter.json", "hooks", SERVICE):
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target)
    return copy


@pytest.fixture(scope="session", autouse=True)
def compiled_templates() -> Iterator[None]:
    """Compile each template once for all bakes, which takes half of the time of a bake; what it renders is its own."""
    compile_template = Environment.compile
    codes: dict[tuple[str, str | None, str | None, str | None], CodeType] = {}

    def compile_once(self: Environment, source: str, name: str | None = None, filename: str | None = None) -> CodeType:
        key = (source, name, filename, self.line_statement_prefix)
        if key not in codes:
            codes[key] = compile_template(self, source, name, filename)
        return codes[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Environment, "compile", compile_once)
        yield


@pytest.fixture(scope="session")
def bake(cookies_session: Cookies, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Bake:
    hooks = tmp_path_factory.mktemp("hooks")

    def bake_project(**answers: str) -> BakedProject:
        with pytest.MonkeyPatch.context() as patch:
            # As in run_cookiecutter.
            patch.setattr("tempfile.tempdir", str(hooks))
            result = cookies_session.bake(extra_context=answers, template=str(template))
        if result.exception:
            raise result.exception
        return BakedProject(result.project_path, dict(result.context))

    return bake_project
