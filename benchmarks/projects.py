"""Projects to measure, baked from the template as a user bakes them."""

import shutil
import sys
from pathlib import Path

from cookiecutter.main import cookiecutter

from tests.support.template import ROOT, SERVICE, list_files

# The virtual environment of the template contains the packages of every project.
PROGRAMS = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"


def bake(folder: Path, **answers: str) -> Path:
    return bake_from(copy_template(folder), folder, **answers)


def copy_template(folder: Path) -> Path:
    """Copy the template as a clone of the repository would contain it."""
    template = folder / "template"
    for path in list_files("cookiecutter.json", "hooks", SERVICE):
        (template / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, template / path)
    return template


def bake_from(template: Path, folder: Path, **answers: str) -> Path:
    return Path(
        cookiecutter(str(template), no_input=True, extra_context=answers, output_dir=folder, default_config=True)
    )
