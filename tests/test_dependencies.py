import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.template import ROOT, SERVICE, read_literal


def name_installed(requirements: Iterable[str], extras: Iterable[str] = ("",)) -> set[str]:
    """Return the names of all packages that these requirements install, also indirectly."""
    names: set[str] = set()
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        names |= {name} | name_installed(needed, requirement.extras or ("",))
    return names


def test_no_package_of_the_service_is_allowed_as_a_slug() -> None:
    template = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    installed = name_installed(template["dependency-groups"]["service"])
    direct = {canonicalize_name(Requirement(line).name) for line in template["dependency-groups"]["service"]}
    assert sorted((installed | direct) - {*read_literal("pre_gen_project.py", "DEPENDENCIES").split()}) == []


def test_template_installs_what_the_service_needs() -> None:
    template = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    service = tomllib.loads((ROOT / SERVICE / "pyproject.toml").read_text(encoding="utf-8"))

    needed = {*service["project"]["dependencies"], *service["dependency-groups"]["dev"]}
    assert sorted(needed) == sorted(template["dependency-groups"]["service"])
    assert template["tool"]["uv"]["exclude-dependencies"] == service["tool"]["uv"]["exclude-dependencies"]
