"""The targets of make pass their values as they are: neither make nor the shell expands them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.programs import person_environment
from tests.support.projects import Bake, BakedProject

LAUNCHER = """
import json, os, sys
values = {name: value for name, value in os.environ.items() if name.startswith("ARG_")}
print(json.dumps([sys.argv[1:], values]))
"""
NASTY = "$(shell touch made) `touch made` $$HOME ${HOME} \"quoted\" it's; touch made & x:int='a b' \\ %s #"


@pytest.fixture(scope="module")
def project(bake: Bake) -> BakedProject:
    """A project whose launcher prints what it is given."""
    project = bake(database="sqlite")
    (project.path / "scripts" / "template.py").write_text(LAUNCHER, encoding="utf-8")
    return project


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("resource", ["NAME", "FIELDS", "SHARED", "ADMIN"]),
        ("field", ["RESOURCE", "FIELD"]),
        ("remove", ["RESOURCE"]),
    ],
)
def test_values_arrive_unchanged(project: BakedProject, target: str, names: list[str]) -> None:
    values = {name: f"{name} {NASTY}" for name in names}
    make = [shutil.which("make") or "make", "--no-print-directory", "--silent", "--old-file=.venv/.installed", target]

    done = subprocess.run(
        [*make, *(f"{name}={value}" for name, value in values.items())],
        cwd=project.path,
        env=person_environment(),
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    arguments, found = json.loads(done.stdout)
    assert arguments == [target]
    assert {name.removeprefix("ARG_"): value for name, value in found.items()} == values
    assert not Path(project.path, "made").exists()
