"""Real worker processes share the attempt counts of the throttle."""

import asyncio
import time
from collections import Counter

import httpx2
import pytest

from tests.support.accounts import PASSWORD, TOKEN_PATH
from tests.support.servers import NO_TLS, Server, run_server, sign_up

pytestmark = pytest.mark.processes

WORKERS = 4
FREE = 5
AT_ONCE = 80


def test_workers_count_guesses_together(live_url: str) -> None:
    with run_server(
        live_url,
        workers=WORKERS,
        THROTTLE_ACCOUNT_ATTEMPTS=str(FREE),
        # One worker may receive all guesses, and must have room for them in its queue.
        PASSWORD_HASH_QUEUE=str(AT_ONCE),
    ) as server:
        with server.open_client() as client:
            sign_up(client)
        started = time.monotonic()

        statuses = Counter(asyncio.run(guess_at_once(server)))

        # After the free attempts, one more is allowed after one second, another after two more seconds, and another
        # after four more seconds.
        allowed = FREE + int(time.monotonic() - started + 1).bit_length()
        assert FREE <= statuses[400] <= allowed
        assert statuses[400] + statuses[429] == AT_ONCE


async def guess_at_once(server: Server) -> list[int]:
    """Send all guesses at once, each over its own connection, so that they reach all workers; return the statuses."""

    async def guess() -> int:
        transport = httpx2.AsyncHTTPTransport(verify=NO_TLS)
        async with httpx2.AsyncClient(transport=transport, base_url=server.base_url, timeout=60) as client:
            form = {"grant_type": "password", "username": "nobody@example.com", "password": PASSWORD}
            return (await client.post(TOKEN_PATH, data=form)).status_code

    return await asyncio.gather(*(guess() for _ in range(AT_ONCE)))
