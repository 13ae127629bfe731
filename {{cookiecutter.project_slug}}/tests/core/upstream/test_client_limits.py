"""Time limits, retries and concurrency of calls to an upstream server that is slow or fails."""

import asyncio
import time
from typing import Any

import pytest

from app.core.upstream.errors import (
    TransientUpstreamError,
    UpstreamRateLimitedError,
    UpstreamSkippedError,
    UpstreamTimeoutError,
    UpstreamTimeoutTooShortError,
)
from app.core.upstream.http_client import LazyHttpClient
from tests.support.upstream_client import FAILS, fetch, fetch_many, make_client, type_names
from tests.support.upstream_server import Behaviour, UpstreamServer, answer, break_off, drip, hang, in_turn


@pytest.mark.parametrize("behaviour", [hang, drip], ids=lambda behaviour: behaviour.__name__)
async def test_slow_upstream_is_given_up_after_the_timeout(
    server: UpstreamServer, http: LazyHttpClient, behaviour: Behaviour
) -> None:
    server.behaviour = behaviour
    started = time.perf_counter()
    with pytest.raises(UpstreamTimeoutError):
        await fetch(make_client(server.url, http, timeout_seconds=0.3))

    assert 0.3 <= time.perf_counter() - started < 20
    # On a machine that pauses, the timeout may pass before the request is sent.
    assert len(server.paths) <= 1


async def test_timeout_bounds_all_attempts_together(server: UpstreamServer, http: LazyHttpClient) -> None:
    server.behaviour = FAILS
    started = time.perf_counter()
    # The time may be up between two attempts or during one.
    with pytest.raises((TransientUpstreamError, UpstreamTimeoutError)):
        await fetch(make_client(server.url, http, timeout_seconds=3, retry_limit=1000, breaker_failures=1000))

    assert time.perf_counter() - started < 20
    assert 2 <= len(server.paths) < 20


async def test_transient_failures_are_retried(server: UpstreamServer, http: LazyHttpClient) -> None:
    server.behaviour = in_turn(FAILS, break_off, answer())

    assert (await fetch(make_client(server.url, http))).base == "EUR"
    assert len(server.paths) == 3


async def test_retry_that_would_come_after_the_timeout_is_not_waited_for(
    server: UpstreamServer, http: LazyHttpClient
) -> None:
    server.behaviour = FAILS
    async with asyncio.timeout(60):
        with pytest.raises(TransientUpstreamError):
            await fetch(make_client(server.url, http, retry_seconds=600))

    assert len(server.paths) == 1


async def test_open_breaker_sends_nothing(server: UpstreamServer, http: LazyHttpClient) -> None:
    server.behaviour = FAILS
    outcomes = []
    client = make_client(server.url, http, breaker_failures=3, breaker_seconds=60, retry_limit=0)
    for _ in range(6):
        outcomes += await fetch_many(client, 1)

    assert [type(outcome) for outcome in outcomes] == [TransientUpstreamError] * 3 + [UpstreamSkippedError] * 3
    assert isinstance(outcomes[-1], UpstreamSkippedError)
    assert 50 < outcomes[-1].retry_after_seconds <= 60
    assert len(server.paths) == 3


async def test_retries_end_when_the_breaker_opens(server: UpstreamServer, http: LazyHttpClient) -> None:
    server.behaviour = FAILS
    with pytest.raises(TransientUpstreamError):
        await fetch(make_client(server.url, http, breaker_failures=2, retry_limit=10))

    assert len(server.paths) == 2


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120), ("99999", 3600), ("0", 1), ("", 30), ("-1", 30), ("Wed, 21 Oct 2026 07:28:00 GMT", 30)],
)
async def test_rate_limit_opens_the_breaker_for_the_time_it_names(
    server: UpstreamServer, http: LazyHttpClient, header: str, seconds: int
) -> None:
    server.behaviour = answer(429, "", Retry_After=header)
    client = make_client(server.url, http)
    with pytest.raises(UpstreamRateLimitedError) as limited:
        await fetch(client)

    assert limited.value.retry_after_seconds == seconds
    if seconds > 1:
        with pytest.raises(UpstreamSkippedError) as skipped:
            await fetch(client)
        assert seconds - 10 < skipped.value.retry_after_seconds <= seconds
        assert len(server.paths) == 1


async def test_concurrency_bounds_the_requests_at_the_same_time(server: UpstreamServer, http: LazyHttpClient) -> None:
    in_progress: list[object] = []
    counts: list[int] = []

    def take_a_moment(handler: Any) -> None:  # noqa: ANN401  # the server's handler
        in_progress.append(handler)
        counts.append(len(in_progress))
        server.released.wait(0.02)
        # Remove the request before the response is sent, because the client may send its next request at once.
        in_progress.remove(handler)
        answer()(handler)

    server.behaviour = take_a_moment
    outcomes = await fetch_many(make_client(server.url, http, concurrency=3), 60)

    assert type_names(outcomes) == {"Rates"}
    assert len(server.paths) == 60
    assert max(counts) <= 3


async def test_flood_is_answered_in_time_while_the_upstream_hangs(server: UpstreamServer, http: LazyHttpClient) -> None:
    server.behaviour = hang
    started = time.perf_counter()
    # The circuit breaker stays closed, so that only the time limit bounds the calls.
    outcomes = await fetch_many(
        make_client(server.url, http, concurrency=3, timeout_seconds=0.5, breaker_failures=1000), 60
    )

    assert all(isinstance(outcome, UpstreamSkippedError | UpstreamTimeoutError) for outcome in outcomes)
    assert "UpstreamSkippedError" in type_names(outcomes)
    # Without the time limit, hanging calls would last far longer.
    assert time.perf_counter() - started < 20
    assert len(server.paths) < 40


async def test_calls_that_time_out_in_queue_do_not_count_against_the_upstream(
    server: UpstreamServer, http: LazyHttpClient
) -> None:
    def take_its_time(handler: Any) -> None:  # noqa: ANN401  # the server's handler
        server.released.wait(2)
        answer()(handler)

    server.behaviour = take_its_time
    client = make_client(server.url, http, timeout_seconds=10, concurrency=10)
    outcomes = await fetch_many(client, 60)

    assert type_names(outcomes) == {"Rates", "UpstreamSkippedError"}
    assert (await fetch(client)).base == "EUR"


async def test_attempt_with_little_time_does_not_count_against_the_upstream(
    server: UpstreamServer, http: LazyHttpClient
) -> None:
    def fail_late(handler: Any) -> None:  # noqa: ANN401  # the server's handler
        server.released.wait(0.6)
        FAILS(handler)

    server.behaviour = in_turn(fail_late, hang, answer())
    # The first attempt takes 0.6 of the 4 seconds. The second one starts with less than 95 % of them, so its timeout
    # does not count as a failure of the upstream. The limit is long because the machine may pause.
    client = make_client(server.url, http, timeout_seconds=4, retry_limit=1, breaker_failures=2, min_attempt_share=0.95)
    with pytest.raises(UpstreamTimeoutTooShortError):
        await fetch(client)

    assert (await fetch(client)).base == "EUR"
