"""The servers that the test modules of this folder, called chapters, share: each is provisioned once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machines import COMMANDS, start_machine
from tests.support.projects import Bake
from tests.support.servers import DOMAIN, EMAIL, PASSWORD, PROJECT, SERVERS, Server, prepare

FOLDER = Path(__file__).parent
# `availability` comes first: it checks that no unit has failed, and the tests of other chapters make some fail.
# `limits` comes late: failed sign-ins count against the account that the other chapters use.
CHAPTERS = (
    "availability",
    "provision",
    "isolation",
    "proxy",
    "pages",
    "deploy",
    "operations",
    "rollback",
    "database",
    "limits",
    "certificate",
)
MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(COMMANDS is None, reason="needs a fresh server: set TEST_MACHINE_COMMANDS (CONTRIBUTING.md)"),
]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every test of this folder."""
    for mark in MARKS:
        item.add_marker(mark)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test on each server, or only on the servers that its mark `servers` names."""
    mark = metafunc.definition.get_closest_marker("servers")
    metafunc.parametrize("server", mark.args if mark else SERVERS, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Finish with a server before the next one is set up; run the chapters in the order of CHAPTERS."""
    places = [place for place, item in enumerate(items) if item.path.parent == FOLDER]
    for place, item in zip(places, sorted((items[place] for place in places), key=order), strict=True):
        items[place] = item


def order(item: pytest.Item) -> tuple[int, int]:
    assert isinstance(item, pytest.Function)
    server = str(item.callspec.params["server"])
    return list(SERVERS).index(server), CHAPTERS.index(item.path.stem.removeprefix("test_"))


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest, bake: Bake) -> Iterator[Server]:
    options = SERVERS[request.param]
    project = bake(
        deployment="vm",
        domain_name=DOMAIN,
        project_slug=options.slug,
        database=options.database,
        process_manager=options.process_manager,
        web_pages=options.web_pages,
    )
    with start_machine(options.release) as machine:
        server = prepare(machine, project)
        account = {"email": EMAIL, "password": PASSWORD}
        assert server.site.request("POST", "/api/v1/users", account).status == 201
        yield server


@pytest.fixture
def token(server: Server) -> str:
    return server.sign_in()


@pytest.fixture
def copy(server: Server) -> Iterator[str]:
    """The folder of a copy of the project on the server; a test may change it."""
    folder = "/root/copy"
    server.machine.run(f"rm -rf {folder}; cp -R {PROJECT} {folder}")
    yield folder
    server.machine.run(f"rm -rf {folder}")
