"""Renders single files of the service with every combination of the options that they depend on.

With all options there are thousands of projects, too many to bake.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

from cookiecutter.utils import create_env_with_context
from jinja2 import FileSystemLoader

from tests.support.template import CHOICES, ONLY_FOR, SERVICE, is_chosen


def list_conditions(name: str) -> list[tuple[str, tuple[str, ...]]]:
    """The options that a path depends on, with the choices that keep it."""
    return [
        (option, tuple(choices))
        for path, (option, *choices) in ONLY_FOR.items()
        if name == path or name.startswith(f"{path}/")
    ]


def render_combinations(name: str, template: Path, answers: dict[str, str]) -> Iterator[tuple[dict[str, str], str]]:
    """Yield the choices of each combination, and the text of the file with them."""
    environment = create_env_with_context({"cookiecutter": answers})
    environment.loader = FileSystemLoader(template / SERVICE)
    source = environment.get_template(name)
    text = (template / SERVICE / name).read_text(encoding="utf-8")
    conditions = {option for option, _ in list_conditions(name)}
    options = [option for option in CHOICES if f"cookiecutter.{option}" in text or option in conditions]
    for choices in product(*(CHOICES[option] for option in options)):
        chosen = dict(zip(options, choices, strict=True))
        if is_chosen(name, answers | chosen):
            yield chosen, source.render(cookiecutter=answers | chosen)
