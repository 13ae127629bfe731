"""The template's options and files."""

import ast
import json
import subprocess
from fnmatch import fnmatch
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SERVICE = "{{cookiecutter.project_slug}}"
CONTEXT = json.loads((ROOT / "cookiecutter.json").read_text(encoding="utf-8"))
CHOICES: dict[str, list[str]] = {
    name: value for name, value in CONTEXT.items() if name[0] != "_" and type(value) is list
}
# Options that fill in a version or a name, or add a file; they do not interact with other options.
LABELS = ("python_version", "ci", "license")


def list_variants() -> list[dict[str, str]]:
    """Return every combination of the structural options, repeated until each choice of each label occurs with it.

    The labels rotate, so that each combination of labels also occurs in some project.
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


def read_table(hook: str, name: str) -> dict[str, tuple[str, ...]]:
    return dict(read_literal(hook, name))


def read_literal(hook: str, name: str) -> Any:  # noqa: ANN401  # the type depends on the constant that is read
    """Return a constant of a hook. A hook cannot be imported before cookiecutter has rendered it."""
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
    """List the files that a commit of the work tree would contain or, if `ignored`, the files that git ignores."""
    kind = ["--others", "--ignored"] if ignored else ["--cached", "--others"]
    command = ["git", "ls-files", "-z", *kind, "--exclude-standard", "--", *folders]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in sorted(set(listing.split("\0")) - {""}) if (ROOT / (path := Path(name))).exists()]


ONLY_FOR = read_table("post_gen_project.py", "ONLY_FOR")


def is_chosen(name: str, answers: dict[str, str]) -> bool:
    return all(
        answers[option] in choices
        for path, (option, *choices) in ONLY_FOR.items()
        if name == path or name.startswith(f"{path}/")
    )


@cache
def read_sources(template: Path) -> dict[str, bytes]:
    source = template / SERVICE
    return {path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if not path.is_dir()}
