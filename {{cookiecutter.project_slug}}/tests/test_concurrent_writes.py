"""What real worker processes lose of what is written at the same time: nothing."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.databases import execute, migrate
from tests.servers import NO_TLS, PATIENCE_SECONDS, Server, run_server, sign_up, wait_for

TODOS = "/api/v1/todos"
WORKERS = 4
AT_ONCE = 200
WRITES = WORKERS * AT_ONCE
WRITERS = 8


@pytest.fixture
def url(empty_url: str) -> str:
    """A database of the test's own, with its schema."""
    migrate(empty_url)
    return empty_url


def test_concurrent_writes_to_many_workers_lose_nothing(url: str) -> None:
    # Not a test of speed: on a busy machine a writer may have to queue for long.
    patience = str(PATIENCE_SECONDS)
    with run_server(url, workers=WORKERS, DATABASE_POOL_TIMEOUT_SECONDS=patience) as server:
        with server.open_client() as client:
            user = sign_up(client)

        statuses = asyncio.run(write_todos(server, user))

        assert Counter(statuses) == {201: WRITES}
        assert read_titles(url) == sorted(map(name_todo, range(WRITES)))
        assert server.stop() == 0
        assert {event["level"] for event in server.events} == {"info"}


async def write_todos(server: Server, user: dict[str, str]) -> list[int]:
    """Each over a connection of its own, one writer beside the other."""
    writers = [write_some(server, user, range(number, WRITES, AT_ONCE)) for number in range(AT_ONCE)]
    return [status for statuses in await asyncio.gather(*writers) for status in statuses]


async def write_some(server: Server, user: dict[str, str], numbers: range) -> list[int]:
    transport = httpx2.AsyncHTTPTransport(verify=NO_TLS)
    async with httpx2.AsyncClient(
        transport=transport, base_url=server.base_url, headers=user, timeout=PATIENCE_SECONDS
    ) as client:
        return [(await client.post(TODOS, json={"title": name_todo(number)})).status_code for number in numbers]


def test_a_crash_of_the_whole_server_loses_nothing_that_it_had_confirmed(url: str, tmp_path: Path) -> None:
    # With a folder of the test's own for the metrics, which nobody clears away after a crash.
    with (
        run_server(url, workers=2, PROMETHEUS_MULTIPROC_DIR=str(tmp_path)) as server,
        ThreadPoolExecutor(WRITERS) as threads,
    ):
        with server.open_client() as client:
            user = sign_up(client)
        writers = [threads.submit(write_until_the_crash, server, user, number) for number in range(WRITERS)]
        wait_for(lambda: server.log.count('"status": 201') > 100, "the writes")
        server.kill()
        confirmed = [title for writer in writers for title in writer.result()]

    with run_server(url) as server:
        assert server.get("/health/ready").status_code == 200
    assert len(confirmed) > 50
    assert set(confirmed) <= set(read_titles(url))


def write_until_the_crash(server: Server, user: dict[str, str], writer: int) -> list[str]:
    """Return the titles that were confirmed."""
    confirmed = []
    with server.open_client() as client:
        for number in range(WRITES):
            title = name_todo(writer * WRITES + number)
            try:
                response = client.post(TODOS, json={"title": title}, headers=user)
            except httpx2.TransportError:
                break
            assert response.status_code == 201, response.text
            confirmed.append(title)
    return confirmed


def name_todo(number: int) -> str:
    return f"Todo {number:06}"


def read_titles(url: str) -> list[object]:
    return [title for (title,) in execute(url, "SELECT title FROM todos ORDER BY title")]
