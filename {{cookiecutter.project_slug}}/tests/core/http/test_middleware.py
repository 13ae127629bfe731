import asyncio
import io
import json
import re
import time
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from app.core.db.session import Database
from tests.support.accounts import PASSWORD, Account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings

USERS = "/api/v1/users"


@pytest.mark.parametrize("request_id", ["a-request-id", "A.b_c-12", "0" * 121, "0" * 32, "client-12"])
async def test_request_id_of_client_is_kept_with_client_prefix(client: httpx2.AsyncClient, request_id: str) -> None:
    response = await client.get("/health", headers={"X-Request-ID": request_id})

    assert response.headers["x-request-id"] == f"client-{request_id}"


@pytest.mark.parametrize("request_id", ["short", "0" * 122, "with space", "semi;colon", "newline%0a!", "é" * 8, ""])
async def test_invalid_request_id_is_replaced(client: httpx2.AsyncClient, request_id: str) -> None:
    response = await client.get("/health", headers=[(b"X-Request-ID", request_id.encode())])

    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-request-id"])


async def test_request_is_logged_in_one_line_without_query(client: httpx2.AsyncClient, logs: io.StringIO) -> None:
    await client.get("/no%20where?token=secret", headers={"X-Request-ID": "request-0123"})

    lines = [json.loads(line) for line in logs.getvalue().splitlines()]
    assert len(lines) == 1
    assert lines[0].keys() >= {"timestamp", "level", "logger", "duration_ms", "client"}
    assert (
        lines[0] | {"event": "request", "path": "/no%20where", "status": 404, "request_id": "client-request-0123"}
        == lines[0]
    )
    assert "secret" not in json.dumps(lines)


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready", "/metrics"])
async def test_probes_are_not_logged(client: httpx2.AsyncClient, logs: io.StringIO, path: str) -> None:
    await client.get(path)

    assert logs.getvalue() == ""


async def test_the_access_lines_can_be_switched_off(migrated_url: str, database: Database, logs: io.StringIO) -> None:
    async with open_client(create_app(make_settings(migrated_url, access_log=False), database)) as client:
        await client.get("/nowhere")

    assert logs.getvalue() == ""


def count(method: str, route: str, status: int) -> float:
    labels = {"method": method, "route": route, "status": str(status)}
    return REGISTRY.get_sample_value("http_requests_total", labels) or 0


async def test_requests_are_counted_by_their_route(client: httpx2.AsyncClient, user: Account) -> None:
    before = count("GET", "/api/v1/users/{user_id}", 403)

    for user_id in ("01890000-0000-7000-8000-000000000001", "01890000-0000-7000-8000-000000000002"):
        await client.get(f"{USERS}/{user_id}", headers=user.headers)

    assert count("GET", "/api/v1/users/{user_id}", 403) == before + 2


async def test_unknown_paths_and_methods_share_one_metric_label(client: httpx2.AsyncClient) -> None:
    before = count("GET", "unmatched", 404), count("other", "/health", 405)

    await client.get("/wp-login.php")
    await client.get("/also-unknown")
    await client.request("BREW", "/health")

    assert (count("GET", "unmatched", 404), count("other", "/health", 405)) == (before[0] + 2, before[1] + 1)


async def test_metrics_include_requests_database_pool_and_sign_ins(client: httpx2.AsyncClient, user: Account) -> None:
    await request_token(client, username=user.email, password="wrong password 123")
    await request_token(client, username=user.email, password=PASSWORD)

    response = await client.get("/metrics")

    assert response.headers["content-type"].startswith("text/plain")
    for line in (
        'http_request_duration_seconds_bucket{le="0.005",method="POST",route="/api/v1/auth/token"}',
        "http_requests_in_flight 1.0",
        "database_pool_size",
        "database_pool_in_use",
        "database_pool_waiting",
        'sign_ins_total{outcome="failure"}',
        'sign_ins_total{outcome="success"}',
    ):
        assert f"\n{line}" in response.text


async def test_metrics_are_available_while_worker_starts(
    client: httpx2.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = MmapedDict(str(tmp_path / "counter_1.db"))  # type: ignore[no-untyped-call]  # no annotation in the library
    key = mmap_key("cakes", "cakes_total", ["kind"], ["plum"], "Cakes baked.")
    counts.write_value(key, 3, time.time())  # type: ignore[no-untyped-call]  # no annotation in the library
    counts.close()  # type: ignore[no-untyped-call]  # no annotation in the library
    # Empty files, as of a worker that has created its files and has written nothing yet.
    for name in ("counter_2.db", "gauge_livesum_2.db"):
        (tmp_path / name).touch()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))

    response = await client.get("/metrics")

    assert response.status_code == 200
    assert '\ncakes_total{kind="plum"} 3.0\n' in response.text


async def test_cors_is_closed_by_default(client: httpx2.AsyncClient) -> None:
    preflight = await client.options(
        USERS, headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "GET"}
    )
    simple = await client.get("/health", headers={"Origin": "https://evil.example"})

    assert [name for name in preflight.headers if name.startswith("access-control-")] == []
    assert "access-control-allow-origin" not in simple.headers


async def test_worker_refuses_requests_above_concurrency_limit_and_recovers(
    migrated_url: str, database: Database, logs: io.StringIO
) -> None:
    settings = make_settings(migrated_url, max_concurrent_requests=2, cors_origins="https://app.example.com")
    app = create_app(settings, database)
    go_on = asyncio.Event()
    under_way = asyncio.Semaphore(0)

    @app.get("/slow")
    async def read_slow() -> None:
        under_way.release()
        await go_on.wait()

    async with open_client(app) as client:
        waiting = [asyncio.create_task(client.get("/slow")) for _ in range(2)]
        for _ in waiting:
            await under_way.acquire()
        refused = await client.get("/slow", headers={"Origin": "https://app.example.com"})
        probe = await client.get("/health/live")
        go_on.set()
        answered = [(await task).status_code for task in waiting]
        recovered = await client.get("/slow")

    assert refused.status_code == 503
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["access-control-allow-origin"] == "https://app.example.com"
    assert refused.headers["x-request-id"] in logs.getvalue()
    assert probe.status_code == 200
    assert answered == [200, 200]
    assert recovered.status_code == 200


async def test_queued_requests_are_answered_within_concurrency_limit(
    migrated_url: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.http.middleware.concurrency_limit.MAX_QUEUE_SECONDS", 60)
    app = create_app(make_settings(migrated_url, max_concurrent_requests=1), database)
    at_once = 0
    most_at_once = 0

    @app.get("/slow")
    async def read_slow() -> None:
        nonlocal at_once, most_at_once
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1

    async with open_client(app) as client:
        answers = await asyncio.gather(*(client.get("/slow") for _ in range(8)))

    assert [answer.status_code for answer in answers] == [200] * 8
    assert most_at_once == 1


async def test_allowed_origin_can_call_and_read_error_responses(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, cors_origins="https://app.example.com")
    origin = {"Origin": "https://app.example.com"}

    async with open_client(create_app(settings, database)) as client:
        preflight = await client.options(USERS, headers={**origin, "Access-Control-Request-Method": "PATCH"})
        refused = await client.get(USERS, headers=origin)
        other = await client.get("/health", headers={"Origin": "https://evil.example"})

    assert preflight.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "PATCH" in preflight.headers["access-control-allow-methods"]
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://app.example.com"
    assert "access-control-allow-credentials" not in refused.headers
    assert "access-control-allow-origin" not in other.headers


async def test_server_error_has_cors_headers(migrated_url: str, database: Database) -> None:
    app = create_app(make_settings(migrated_url, cors_origins="https://app.example.com"), database)
    break_it(app)

    async with open_client(app) as client:
        response = await client.get("/broken", headers={"Origin": "https://app.example.com"})

    assert response.status_code == 500
    assert response.headers["access-control-allow-origin"] == "https://app.example.com"


def break_it(app: FastAPI) -> None:
    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]", "[::1]:8000", "LOCALHOST"])
async def test_local_host_names_are_allowed(client: httpx2.AsyncClient, host: str) -> None:
    response = await client.get("/openapi.json", headers={"Host": host})

    assert response.status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "localhost@evil.example", "[::2]", "a b"])
async def test_unknown_host_names_are_refused(client: httpx2.AsyncClient, host: str) -> None:
    response = await client.get("/openapi.json", headers={"Host": host})

    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"


async def test_a_subdomain_is_answered_where_its_wildcard_is_allowed(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, allowed_hosts="*.example.com")
    async with open_client(create_app(settings, database)) as client:
        subdomain = await client.get("/openapi.json", headers={"Host": "api.example.com"})
        other = await client.get("/openapi.json", headers={"Host": "evil-example.com"})

    assert subdomain.status_code == 200
    assert other.status_code == 400
