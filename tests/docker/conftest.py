"""The containers that the test modules of this folder, called chapters, share: they are built and started once."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.support.containers import PASSWORD, RECOVERY_SECONDS, Stack, commit, has_engine, read_manual
from tests.support.projects import Bake, BakedProject
from tests.support.serving import wait_until

MARKS = [
    pytest.mark.docker,
    pytest.mark.slow,
    # The first test also builds the image.
    pytest.mark.timeout(600),
    pytest.mark.skipif(not has_engine(), reason="no container engine: `docker info` fails"),
]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark every test of this folder."""
    for mark in MARKS:
        item.add_marker(mark)


@pytest.fixture(scope="session")
def origin(bake: Bake) -> BakedProject:
    """The team's git repository, which every deployment clones."""
    project = bake(project_slug=f"pg-{uuid4().hex[:8]}")
    project.run(["git", "init", "--quiet", "--initial-branch=main"])
    commit(project, "First release")
    return project


@pytest.fixture(scope="session")
def manual(origin: BakedProject) -> dict[str, list[str]]:
    """The commands of docs/containers.md by heading; test_manual.py checks that the tests use each heading."""
    return read_manual(origin)


@pytest.fixture(scope="session")
def stack(
    origin: BakedProject, manual: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """One instance on PostgreSQL in production, brought up by the manual's first deployment."""
    folder = tmp_path_factory.mktemp("server")
    stack = Stack(BakedProject(folder / origin.path.name, origin.answers))
    url = f"https://git.example.com/{origin.path.name}.git"
    stack.variables |= {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{origin.path}.insteadOf",
        "GIT_CONFIG_VALUE_0": url,
    }
    (deploy,) = manual["First deployment"]
    password = f"{PASSWORD}\n"
    try:
        # Hardened machines have this umask; the manual's commands must let the containers read their files.
        stack.follow(f"umask 077\n{deploy}", folder, {"Password: ": password, "Repeat for confirmation: ": password})
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="session", params=["supervisor", "circus"])
def sqlite(bake: Bake, request: pytest.FixtureRequest) -> Iterator[Stack]:
    """A production instance with SQLite and the pages, once under each process manager that `stack` does not use."""
    answers = {"database": "sqlite", "web_pages": "yes", "process_manager": request.param}
    stack = Stack(bake(project_slug=f"lite-{uuid4().hex[:8]}", **answers))
    try:
        stack.up("--build")
        yield stack
    finally:
        stack.down()


@pytest.fixture(scope="session")
def account(stack: Stack) -> str:
    return stack.create_account()


@pytest.fixture
def user(stack: Stack, account: str) -> dict[str, str]:
    return stack.sign_in(account)


@pytest.fixture
def scaled(stack: Stack, manual: dict[str, list[str]]) -> Iterator[Stack]:
    stack.follow(manual["Update, roll back, scale"][3])
    wait_until(lambda: len(stack.serving()) == 3, RECOVERY_SECONDS, lambda: "nginx serves from three instances")
    yield stack
    stack.up("--scale", "app=1", "--no-recreate")
    wait_until(lambda: len(stack.serving()) == 1, RECOVERY_SECONDS, lambda: "nginx serves from one instance")
