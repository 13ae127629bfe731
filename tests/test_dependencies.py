import tomllib

from tests.conftest import ROOT, SERVICE


def test_template_installs_what_the_service_needs() -> None:
    template = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    service = tomllib.loads((ROOT / SERVICE / "pyproject.toml").read_text(encoding="utf-8"))

    needed = {*service["project"]["dependencies"], *service["dependency-groups"]["dev"]}
    assert sorted(needed) == sorted(template["dependency-groups"]["service"])
    assert template["tool"]["uv"]["exclude-dependencies"] == service["tool"]["uv"]["exclude-dependencies"]
