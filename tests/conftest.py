import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import CodeType

import pytest
from jinja2 import Environment
from pytest_cookies.plugin import Cookies
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from tests.support.machines import COMMANDS
from tests.support.projects import Bake, BakedProject
from tests.support.servers import SERVERS
from tests.support.template import ROOT, SERVICE, list_files

# At the end: tools/resource.py must not replace the module `resource` of the standard library.
sys.path.append(str(ROOT / "tools"))

# How the names of scopes begin whose tests run on servers.
ON_SERVERS = "tests/vm["


class ChapterScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Runs a subfolder's tests in one xdist worker, so that fixtures are set up once: one for each server or database.

    The first worker runs only the tests of servers, which mostly wait. The others begin with everything else.
    """

    def _assign_work_unit(self, node: WorkerController) -> None:
        for scope in self.workqueue:
            if scope.startswith(ON_SERVERS) is self._is_for_servers(node):
                self.workqueue.move_to_end(scope, last=False)
                break
        super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        if self._is_for_servers(node) and not any(scope.startswith(ON_SERVERS) for scope in self.workqueue):
            node.shutdown()
        else:
            super()._reschedule(node)

    def _is_for_servers(self, node: WorkerController) -> bool:
        return bool(COMMANDS) and node.gateway.id == "gw0" and len(self.nodes) > 1

    def _split_scope(self, nodeid: str) -> str:
        folder = PurePosixPath(nodeid.partition("::")[0]).parent
        if folder.name == "tests":
            return str(super()._split_scope(nodeid))
        parameter = nodeid.partition("[")[2].rstrip("]").partition("-")[0]
        return f"{folder}[{parameter}]" if parameter in SERVERS else str(folder)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """Use one worker more than there are processors if there are servers to wait for."""
    return (os.cpu_count() or 1) + 1 if COMMANDS else None


# Optional, because xdist may be switched off (`-p no:xdist`).
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ChapterScheduling | None:
    return ChapterScheduling(config, log) if config.getoption("dist") == "loadscope" else None


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the template as a clone would contain it; the copy does not change while other tests run in place."""
    copy = tmp_path_factory.mktemp("template")
    for path in list_files("cookiecutter.json", "hooks", SERVICE):
        target = copy / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target)
    return copy


@pytest.fixture(scope="session", autouse=True)
def compiled_templates() -> Iterator[None]:
    """Compile each template once for all bakes: compiling takes half of the time of a bake."""
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
            # cookiecutter leaves its rendered hooks in the folder for temporary files.
            patch.setattr("tempfile.tempdir", str(hooks))
            result = cookies_session.bake(extra_context=answers, template=str(template))
        if result.exception:
            raise result.exception
        return BakedProject(result.project_path, dict(result.context))

    return bake_project
