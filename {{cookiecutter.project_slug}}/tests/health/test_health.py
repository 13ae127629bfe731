import asyncio
import io
import os
import signal
import threading
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from app.core.db.revisions import head_revision, read_revisions
from app.core.db.session import Database
from app.core.process.lifecycle import track_shutdown_signals
from app.core.project import read_project
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import add_migration, execute_async, make_settings, unreachable_url


async def test_health_names_the_service(client: httpx2.AsyncClient) -> None:
    project = read_project()

    response = await client.get("/health")

    assert response.json() == {"name": project.name, "version": project.version, "status": "ok"}


async def test_a_service_with_its_database_is_ready(client: httpx2.AsyncClient) -> None:
    response = await client.get("/health/ready")

    assert response.status_code == 200
    assert response.json() == {"status": "ready"}


async def test_a_database_without_a_schema_is_not_ready(empty_url: str) -> None:
    async with open_client(create_app(make_settings(empty_url))) as client:
        ready = await client.get("/health/ready")
        live = await client.get("/health/live")

    assert ready.status_code == 503
    assert ready.headers["retry-after"] == "1"
    assert ready.json()["detail"] == "The database is not ready."
    assert live.status_code == 200


@pytest.mark.parametrize(("revision", "status"), [("0001", 503), ("9999", 200)], ids=["behind", "ahead"])
async def test_older_schema_is_not_ready_and_newer_schema_is_ready(empty_url: str, revision: str, status: int) -> None:
    await execute_async(empty_url, "CREATE TABLE alembic_version (version_num VARCHAR(32))")
    await execute_async(empty_url, f"INSERT INTO alembic_version VALUES ('{revision}')")  # noqa: S608  # SQL of this test, without input from outside

    async with open_client(create_app(make_settings(empty_url))) as client:
        response = await client.get("/health/ready")

    assert response.status_code == status


async def test_service_with_conflicting_migrations_is_not_ready_and_logs_remedy(
    app: FastAPI, logs: io.StringIO, migrations_folder: Path
) -> None:
    for revision in ("9998", "9999"):
        add_migration(migrations_folder, revision, head_revision())
    read_revisions.cache_clear()

    async with open_client(app) as client:
        response = await client.get("/health/ready")

    assert response.status_code == 503
    assert "but no migration follows 9998 and 9999. With the one that should be the last, run" in logs.getvalue()
    assert "Traceback" not in logs.getvalue()


async def test_unreachable_database_is_answered_with_503() -> None:
    settings = make_settings(unreachable_url())
    async with open_client(create_app(settings)) as client:
        ready = await client.get("/health/ready")
        token = await client.post(
            "/api/v1/auth/token", data={"grant_type": "password", "username": "a", "password": "b"}
        )
        live = await client.get("/health/live")

    assert ready.status_code == token.status_code == 503
    assert "nowhere" not in ready.text + token.text
    assert "127.0.0.1" not in ready.text + token.text
    assert live.status_code == 200


async def test_a_stopping_process_is_not_ready(client: httpx2.AsyncClient) -> None:
    handled = []
    before = signal.signal(signal.SIGTERM, lambda *_: handled.append("server"))
    try:
        with track_shutdown_signals() as stopping:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)

            assert stopping.is_set
            assert handled == ["server"]
    finally:
        signal.signal(signal.SIGTERM, before)


async def test_readiness_fails_after_stop_signal(app: FastAPI) -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        async with open_client(app) as client:
            assert (await client.get("/health/ready")).status_code == 200
            os.kill(os.getpid(), signal.SIGTERM)

            response = await client.get("/health/ready")
    finally:
        signal.signal(signal.SIGTERM, before)

    assert response.status_code == 503
    assert response.json()["detail"] == "The service is stopping."


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics"])
async def test_probes_are_answered_for_any_host_header(client: httpx2.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"Host": "10.0.0.7"})

    assert response.status_code == 200


async def test_readiness_check_is_answered_in_time_while_database_hangs(
    live_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = asyncio.Event()

    async def hold(_session: object) -> bool:
        try:
            await asyncio.Event().wait()
        finally:
            # Like psycopg, which on cancellation asks the server to cancel the statement, and waits for the server.
            await let_go.wait()
        return True

    monkeypatch.setattr("app.health.service.is_up_to_date", hold)
    async with open_client(create_app(make_settings(live_url, readiness_timeout_seconds=0.05))) as client:
        response = await client.get("/health/ready")
        let_go.set()

    assert response.status_code == 503


async def test_metrics_are_rendered_outside_event_loop(
    migrated_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.health.metrics.render_metrics", lambda: threading.current_thread().name.encode())

    async with open_client(create_app(make_settings(migrated_url), database)) as client:
        response = await client.get("/metrics")

    assert response.status_code == 200
    assert response.text != threading.current_thread().name
