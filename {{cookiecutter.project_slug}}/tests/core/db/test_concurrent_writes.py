"""Concurrent writes by real worker processes lose no data."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.support.accounts import PASSWORD
from tests.support.databases import execute, migrate
from tests.support.servers import NO_TLS, PATIENCE_SECONDS, Server, run_server, wait_for

pytestmark = pytest.mark.processes

USERS = "/api/v1/users"
WORKERS = 4
AT_ONCE = 200
WRITES = WORKERS * AT_ONCE
WRITERS = 8
# On a busy machine, probes and background tasks may wait too long for the database; they try again.
WAITING = {"not ready", "outbox unreachable", "purge failed"}


@pytest.fixture
def url(empty_url: str) -> str:
    """A database with the schema, which only this test uses."""
    migrate(empty_url)
    return empty_url


def test_concurrent_writes_to_many_workers_lose_nothing(url: str) -> None:
    # Not a test of speed: on a busy machine a writer may have to queue for long.
    patience = str(PATIENCE_SECONDS)
    with run_server(
        url,
        workers=WORKERS,
        DATABASE_POOL_TIMEOUT_SECONDS=patience,
        PASSWORD_HASH_QUEUE=str(AT_ONCE),
        THROTTLING="false",
    ) as server:
        statuses = asyncio.run(write_users(server))

        assert Counter(statuses) == {201: WRITES}
        assert read_emails(url) == sorted(map(name_user, range(WRITES)))
        # Each event is written in the transaction of its user.
        assert execute(url, "SELECT count(*) FROM audit_events") == [(WRITES,)]
        assert server.stop() == 0
        assert [event for event in server.events if event["level"] != "info" and event["event"] not in WAITING] == []


async def write_users(server: Server) -> list[int]:
    """Create all users by concurrent writers, each with its own connection; return the statuses."""
    writers = [write_some(server, range(number, WRITES, AT_ONCE)) for number in range(AT_ONCE)]
    return [status for statuses in await asyncio.gather(*writers) for status in statuses]


async def write_some(server: Server, numbers: range) -> list[int]:
    transport = httpx2.AsyncHTTPTransport(verify=NO_TLS)
    async with httpx2.AsyncClient(transport=transport, base_url=server.base_url, timeout=PATIENCE_SECONDS) as client:
        return [(await client.post(USERS, json=make_user(number))).status_code for number in numbers]


def test_server_crash_loses_no_confirmed_writes(url: str, tmp_path: Path) -> None:
    # The metrics get a temporary folder, because no process removes it after a crash.
    with (
        run_server(url, workers=2, PROMETHEUS_MULTIPROC_DIR=str(tmp_path), THROTTLING="false") as server,
        ThreadPoolExecutor(WRITERS) as threads,
    ):
        writers = [threads.submit(write_until_the_crash, server, number) for number in range(WRITERS)]
        wait_for(lambda: server.log.count('"status": 201') > 100, "the writes")
        server.kill()
        confirmed = [email for writer in writers for email in writer.result()]

    with run_server(url) as server:
        assert server.get("/health/ready").status_code == 200
    assert len(confirmed) > 50
    assert set(confirmed) <= set(read_emails(url))


def write_until_the_crash(server: Server, writer: int) -> list[str]:
    """Create accounts until the server crashes; return the addresses of the accounts that it confirmed."""
    confirmed = []
    with server.open_client() as client:
        for number in range(WRITES):
            user = make_user(writer * WRITES + number)
            try:
                response = client.post(USERS, json=user)
            except httpx2.TransportError:
                break
            assert response.status_code == 201, response.text
            confirmed.append(user["email"])
    return confirmed


def make_user(number: int) -> dict[str, str]:
    return {"email": name_user(number), "password": PASSWORD}


def name_user(number: int) -> str:
    return f"{number:06}@example.com"


def read_emails(url: str) -> list[object]:
    return [email for (email,) in execute(url, "SELECT email FROM users ORDER BY email")]
