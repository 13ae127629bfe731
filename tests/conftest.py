import shutil
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest
from jinja2 import Environment
from pytest_cookies.plugin import Cookies

from tests.support.projects import Bake, BakedProject
from tests.support.template import ROOT, SERVICE, list_files


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
