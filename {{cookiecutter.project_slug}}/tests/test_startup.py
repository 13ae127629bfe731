"""Many processes that start at the same time with one database."""

import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

from app.accounts.feature import DEMO_EMAIL
from app.core.db.revisions import head_revision
from tests.support.databases import execute, migrate, server_url
from tests.support.servers import (
    MANAGERS,
    SERVE,
    SERVE_TWO,
    START,
    WORKER_CLASSES,
    Server,
    make_environment,
    run_server,
    sign_up,
    start_process,
    wait_for,
)

pytestmark = pytest.mark.processes

TOGETHER = 8


def start_together(url: str, **changes: str) -> list[object]:
    """Start many processes at once, stop them when all are ready, and return the events that they logged."""
    with ExitStack() as stack:
        # All processes get the same start time: a process with a later start time would reset the database again.
        environment = make_environment(url, DATABASE_POOL_SIZE="1", SERVICE_STARTED_AT=str(time.time()), **changes)
        servers = [stack.enter_context(start_process(SERVE, environment)) for _ in range(TOGETHER)]
        for server in servers:
            server.wait_until_started()
        assert [server.get("/health/ready").status_code for server in servers] == [200] * TOGETHER
        for server in servers:
            server.send(signal.SIGTERM)
        assert [server.wait() for server in servers] == [0] * TOGETHER
        events = [event for server in servers for event in server.events]
    assert not [event for event in events if event["level"] != "info"]
    return [event["event"] for event in events]


def list_emails(url: str) -> list[object]:
    return [email for (email,) in execute(url, "SELECT email FROM users ORDER BY created_at")]


def test_concurrent_starts_on_empty_database_create_one_schema(empty_url: str) -> None:
    start_together(empty_url, UPDATE_DB="1")

    assert execute(empty_url, "SELECT version_num FROM alembic_version") == [(head_revision(),)]
    assert list_emails(empty_url) == []


def test_concurrent_starts_with_reset_load_sample_data_once(empty_url: str) -> None:
    said = start_together(empty_url, RESET_DB="1")

    assert said.count("the database was reset, and the sample data is loaded") == 1
    assert execute(empty_url, "SELECT version_num FROM alembic_version") == [(head_revision(),)]
    assert list_emails(empty_url) == [DEMO_EMAIL]


@pytest.mark.parametrize("command", MANAGERS.values(), ids=MANAGERS)
def test_database_is_reset_by_new_start_and_not_by_new_worker(empty_url: str, command: Sequence[str]) -> None:
    with run_server(empty_url, command, workers=2, RESET_DB="1") as server:
        email = add_user(server)
        for worker in server.workers:
            os.kill(worker, signal.SIGKILL)
        wait_for(lambda: server.count_started() == 4, "the new workers")
        server.send(signal.SIGHUP)
        wait_for(lambda: server.count_started() == 6, "the newest workers")

        assert list_emails(empty_url) == [DEMO_EMAIL, email]
        assert server.stop() == 0
    with run_server(empty_url, command, RESET_DB="1"):
        assert list_emails(empty_url) == [DEMO_EMAIL]


@pytest.mark.parametrize("command", [*MANAGERS.values(), SERVE_TWO], ids=[*MANAGERS, "serve"])
def test_a_worker_that_dies_while_the_database_is_out_of_reach_is_replaced(
    empty_url: str, command: Sequence[str]
) -> None:
    with run_server(empty_url, command, workers=2, UPDATE_DB="1") as server:
        with out_of_reach(empty_url):
            os.kill(min(server.workers), signal.SIGKILL)
            wait_for(lambda: server.count_started() == 3 or server.process.poll() is not None, "the new worker")

            assert len(server.workers) == 2
            assert [server.get("/health/live").status_code for _ in range(TOGETHER)] == [200] * TOGETHER
        wait_for(lambda: server.get("/health/ready").status_code == 200, "the database")
        assert server.stop() == 0


@contextmanager
def out_of_reach(url: str) -> Iterator[None]:
    """Make new connections fail; on PostgreSQL, also end the existing ones."""
    database = make_url(url).database or ""
    if make_url(url).get_backend_name() == "sqlite":
        away = Path(database).rename(f"{database}.away")
        Path(database).mkdir()
        yield
        Path(database).rmdir()
        away.rename(database)
        return
    execute(server_url(), f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
    ended = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"  # noqa: S608  # SQL of this test, without input from outside
    execute(server_url(), ended)
    yield
    execute(server_url(), f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")


def add_user(server: Server) -> object:
    """Create an account, and return its e-mail address."""
    with server.open_client() as client:
        return client.get("/api/v1/users/me", headers=sign_up(client)).json()["email"]


def test_a_reset_is_refused_in_production(empty_url: str) -> None:
    with run_server(empty_url, SERVE, UPDATE_DB="1") as server:
        email = add_user(server)
    deployed = {
        "ENVIRONMENT": "production",
        "SECRET_KEY": "0f9d7Kq2Lm4Xz8Rb1Tv6Ny3Wc5Hs0JgP",
        "ALLOWED_HOSTS": "example.com",
    }

    with start_process(START, make_environment(empty_url, RESET_DB="1", **deployed)) as server:
        assert server.wait() == 3
        assert server.log.splitlines() == [
            "The configuration is invalid:",
            "  RESET_DB: would delete all data: allowed only if ENVIRONMENT is local or test",
        ]
    assert list_emails(empty_url) == [email]


def test_service_without_schema_runs_but_is_not_ready_and_logs_remedy(empty_url: str) -> None:
    with run_server(empty_url) as server:
        before = server.get("/health/ready")
        server.wait_for_event("python -m app db upgrade")
        migrate(empty_url)
        after = server.get("/health/ready")

        assert server.get("/health").status_code == 200
        assert before.status_code == 503
        assert after.status_code == 200
        assert server.stop() == 0


@pytest.mark.parametrize("command", [*MANAGERS.values(), SERVE], ids=[*MANAGERS, "serve"])
def test_start_ends_with_readable_error_when_database_cannot_be_prepared(
    empty_url: str, command: Sequence[str]
) -> None:
    execute(empty_url, "CREATE TABLE users (id INTEGER)")

    with start_process(command, make_environment(empty_url, UPDATE_DB="1")) as server:
        assert server.wait() == 3
        assert re.search("The database cannot be prepared: .*users.* already exists", server.log)
        assert "Traceback" not in server.log


@pytest.mark.parametrize("command", [*MANAGERS.values(), SERVE], ids=[*MANAGERS, "serve"])
def test_schema_of_newer_release_stays_unchanged_and_is_logged_once(empty_url: str, command: Sequence[str]) -> None:
    migrate(empty_url)
    execute(empty_url, "UPDATE alembic_version SET version_num = '9999'")

    with run_server(empty_url, command, workers=1 if command is SERVE else 2, UPDATE_DB="1") as server:
        assert server.get("/health/ready").status_code == 200
        assert server.log.count("a newer release has migrated the database: the schema is unchanged") == 1
        assert server.stop() == 0
    assert execute(empty_url, "SELECT version_num FROM alembic_version") == [("9999",)]


@pytest.mark.parametrize(("command", "worker_class"), WORKER_CLASSES.values(), ids=WORKER_CLASSES)
def test_start_ends_with_readable_error_when_database_is_unreachable(
    empty_url: str, tmp_path: Path, command: Sequence[str], worker_class: str
) -> None:
    is_sqlite = make_url(empty_url).get_backend_name() == "sqlite"
    # With SQLite, a folder in place of the file; with PostgreSQL, a port on which nothing listens.
    url = f"sqlite:///{tmp_path}" if is_sqlite else "postgresql://127.0.0.1:1/name"

    with start_process(command, make_environment(url, UPDATE_DB="1", WORKER_CLASS=worker_class)) as server:
        assert server.wait() == 3
        assert "The database cannot be prepared: " in server.log
        assert "Traceback" not in server.log
    tmp_path.with_name(f"{tmp_path.name}.lock").unlink(missing_ok=True)
