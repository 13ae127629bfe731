"""The client, the circuit breaker and the cache for calls to other services, against a server that misbehaves."""

import asyncio
import io
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pydantic import AwareDatetime, BaseModel, FiniteFloat

from app.core.upstream.breaker import Breaker
from app.core.upstream.cache import CachedValue, StaleCache
from app.core.upstream.client import UpstreamClient, UpstreamOptions
from app.core.upstream.errors import (
    InvalidUpstreamResponseError,
    TransientUpstreamError,
    UpstreamCredentialsError,
    UpstreamError,
    UpstreamRateLimitedError,
    UpstreamRefusedError,
    UpstreamSkippedError,
    UpstreamTimeoutError,
    UpstreamTimeoutTooShortError,
    UpstreamUnreachableError,
)
from app.core.upstream.http_client import LazyHttpClient, open_http_client
from tests.support.clock import Clock
from tests.support.outgoing import Outgoing
from tests.support.proxies import set_proxy
from tests.support.second_factor import NOW
from tests.support.sockets import hold_port
from tests.support.upstream_server import (
    Behaviour,
    UpstreamServer,
    answer,
    break_off,
    drip,
    hang,
    hang_up,
    in_turn,
    never_end,
    run_upstream_server,
)

SECRET = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
RATES = {"base": "EUR", "rate": 1.1, "at": 1485789600}
FAILS = answer(500, "Something broke")


class Rates(BaseModel):
    base: str
    rate: FiniteFloat
    at: AwareDatetime


@pytest.fixture
def server() -> Iterator[UpstreamServer]:
    with run_upstream_server(RATES) as server:
        yield server


@pytest.fixture
async def http(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LazyHttpClient]:
    set_proxy(monkeypatch, "")
    async with open_http_client(max_connections=100) as http:
        yield http


def make_client(base_url: str, http: LazyHttpClient, **changes: Any) -> UpstreamClient:  # noqa: ANN401  # options of several types
    # Long time limits, so that a pause of this machine is not taken for a failure of the upstream.
    patient: dict[str, Any] = {"timeout_seconds": 120, "connect_timeout_seconds": 20, "retry_seconds": 0.01}
    return UpstreamClient("rate service", base_url, http, UpstreamOptions(**{**patient, **changes}))


async def fetch(client: UpstreamClient) -> Rates:
    return await client.get("/latest", Rates)


async def fetch_many(client: UpstreamClient, count: int) -> list[Rates | BaseException]:
    return await asyncio.gather(*(fetch(client) for _ in range(count)), return_exceptions=True)


def type_names(outcomes: list[Rates | BaseException]) -> set[str]:
    return {type(outcome).__name__ for outcome in outcomes}


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


async def test_response_is_validated(server: UpstreamServer, http: LazyHttpClient) -> None:
    received = []

    def record(handler: Any) -> None:  # noqa: ANN401  # the server's
        received.append(handler.headers)
        answer()(handler)

    server.behaviour = record
    client = make_client(f"{server.url}/v1/", http)
    rates = await client.get("/latest", Rates, params={"base": "a&b=c"}, headers={"Authorization": SECRET})

    assert (rates.base, rates.rate) == ("EUR", 1.1)
    assert server.paths[0].startswith("/v1/latest?")
    assert server.queries == [{"base": "a&b=c"}]
    assert (received[0]["Accept"], received[0]["Authorization"]) == ("application/json", SECRET)


FAILURES: dict[str, tuple[Behaviour, type[UpstreamError], int]] = {
    "not-json": (answer(200, "<html>"), InvalidUpstreamResponseError, 1),
    "empty": (answer(200, ""), InvalidUpstreamResponseError, 1),
    "other-json": (answer(200, {"base": "EUR"}), InvalidUpstreamResponseError, 1),
    "wrong-type": (answer(200, {**RATES, "rate": "much"}), InvalidUpstreamResponseError, 1),
    "not-a-number": (answer(200, {**RATES, "rate": math.nan}), InvalidUpstreamResponseError, 1),
    "beyond-the-calendar": (answer(200, {**RATES, "at": 10**18}), InvalidUpstreamResponseError, 1),
    "deep": (answer(200, "[" * 20_000), InvalidUpstreamResponseError, 1),
    "not-utf-8": (answer(200, json.dumps(RATES).replace("EUR", "\\ud800")), InvalidUpstreamResponseError, 1),
    "huge": (answer(200, {**RATES, "more": "x" * 100_000}), InvalidUpstreamResponseError, 1),
    "endless": (never_end, InvalidUpstreamResponseError, 1),
    "redirect": (answer(302, "", Location="http://127.0.0.1:1/"), InvalidUpstreamResponseError, 1),
    "no-content": (answer(204, ""), InvalidUpstreamResponseError, 1),
    "teapot": (answer(418, ""), InvalidUpstreamResponseError, 1),
    "unauthorized": (answer(401, {"message": f"Invalid key {SECRET}"}), UpstreamCredentialsError, 1),
    "forbidden": (answer(403, ""), UpstreamCredentialsError, 1),
    "rate-limited": (answer(429, "", Retry_After="7"), UpstreamRateLimitedError, 1),
    "failed": (FAILS, TransientUpstreamError, 3),
    "unavailable": (answer(503, "", Retry_After="7"), TransientUpstreamError, 3),
    "broken-off": (break_off, TransientUpstreamError, 3),
    "hung-up": (hang_up, TransientUpstreamError, 3),
}


@pytest.mark.parametrize(("behaviour", "expected", "attempts"), FAILURES.values(), ids=FAILURES)
async def test_each_kind_of_failure_raises_its_own_error(
    server: UpstreamServer,
    http: LazyHttpClient,
    logs: io.StringIO,
    behaviour: Behaviour,
    expected: type[UpstreamError],
    attempts: int,
) -> None:
    server.behaviour = behaviour
    with pytest.raises(expected) as failure:
        await fetch(make_client(server.url, http))

    assert type(failure.value) is expected
    assert failure.value.retry_after_seconds >= 1
    assert len(server.paths) == attempts
    assert SECRET not in failure.value.detail + logs.getvalue()


async def test_compressed_response_is_not_asked_for_and_not_unpacked(
    server: UpstreamServer, http: LazyHttpClient
) -> None:
    server.behaviour = answer(Content_Encoding="gzip")

    assert (await fetch(make_client(server.url, http))).base == "EUR"


@pytest.mark.parametrize("status", [400, 404, 409, 410, 422])
async def test_refusal_of_the_request_is_not_a_failure_of_the_upstream(
    server: UpstreamServer, http: LazyHttpClient, status: int
) -> None:
    server.behaviour = in_turn(FAILS, answer(status, ""), FAILS, answer(status, ""))
    client = make_client(server.url, http, breaker_failures=2, retry_limit=0)
    for _ in range(2):
        with pytest.raises(TransientUpstreamError):
            await fetch(client)
        with pytest.raises(UpstreamRefusedError) as refusal:
            await fetch(client)

    assert refusal.value.upstream_status == status
    assert len(server.paths) == 4


async def test_failure_becomes_a_problem_document(app: FastAPI, client: httpx2.AsyncClient) -> None:
    async def read_rates() -> None:
        raise UpstreamRateLimitedError("The rate service's rate limit is exceeded.", 7.4)

    app.add_api_route("/rates", read_rates)
    response = await client.get("/rates")

    assert (response.status_code, response.json()["code"]) == (503, "upstream-rate-limited")
    assert response.headers["retry-after"] == "7"


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


async def test_unreachable_upstream_is_named_in_the_log_only(http: LazyHttpClient, logs: io.StringIO) -> None:
    with hold_port() as held:
        port = held.getsockname()[1]
        with pytest.raises(UpstreamUnreachableError) as failure:
            await fetch(make_client(f"http://127.0.0.1:{port}", http))

    assert str(port) not in failure.value.detail
    assert "Connect call failed" in logs.getvalue()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx2.ConnectError("[Errno -2] Name or service not known"), UpstreamUnreachableError),
        (httpx2.ConnectTimeout(""), UpstreamUnreachableError),
        (httpx2.ProxyError("407 Proxy Authentication Required"), UpstreamUnreachableError),
        (httpx2.ReadTimeout(""), UpstreamTimeoutError),
        (httpx2.RemoteProtocolError(f"illegal status line: {SECRET}"), TransientUpstreamError),
    ],
)
async def test_log_names_the_cause_of_a_failure(
    outgoing: Outgoing, logs: io.StringIO, error: Exception, expected: type[UpstreamError]
) -> None:
    outgoing.fail("GET", "https://rates.example.com/latest", error)
    client = make_client("https://rates.example.com", LazyHttpClient(10, outgoing.transport), retry_limit=0)
    with pytest.raises(expected) as failure:
        await fetch(client)

    (line,) = map(json.loads, logs.getvalue().splitlines())
    assert (line["event"], line["upstream"]) == ("upstream failed", "rate service")
    assert line["cause"] == type(error).__name__
    assert SECRET not in failure.value.detail + logs.getvalue()


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

    def take_a_moment(handler: Any) -> None:  # noqa: ANN401  # the server's
        in_progress.append(handler)
        counts.append(len(in_progress))
        server.released.wait(0.02)
        # Before the response, because the next request comes after it.
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
    # Without the help of the breaker.
    outcomes = await fetch_many(
        make_client(server.url, http, concurrency=3, timeout_seconds=0.5, breaker_failures=1000), 60
    )

    assert all(isinstance(outcome, UpstreamSkippedError | UpstreamTimeoutError) for outcome in outcomes)
    assert "UpstreamSkippedError" in type_names(outcomes)
    # Hanging calls last far longer.
    assert time.perf_counter() - started < 20
    assert len(server.paths) < 40


async def test_calls_that_time_out_in_queue_do_not_count_against_the_upstream(
    server: UpstreamServer, http: LazyHttpClient
) -> None:
    def take_its_time(handler: Any) -> None:  # noqa: ANN401  # the server's
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
    def fail_late(handler: Any) -> None:  # noqa: ANN401  # the server's
        server.released.wait(0.6)
        FAILS(handler)

    server.behaviour = in_turn(fail_late, hang, answer())
    # With a share of 0.95, the second attempt has less than its share, and time enough on a machine that pauses.
    client = make_client(server.url, http, timeout_seconds=4, retry_limit=1, breaker_failures=2, min_attempt_share=0.95)
    with pytest.raises(UpstreamTimeoutTooShortError):
        await fetch(client)

    assert (await fetch(client)).base == "EUR"


def make_breaker(failures: int, seconds: float, clock: Clock) -> Breaker:
    return Breaker("rate service", failures=failures, seconds=seconds, clock=clock)


def fail(breaker: Breaker) -> None:
    with pytest.raises(TransientUpstreamError), breaker.guard():
        raise TransientUpstreamError("no")


def succeed(breaker: Breaker) -> None:
    with breaker.guard():
        pass


def skip(breaker: Breaker) -> UpstreamSkippedError:
    with pytest.raises(UpstreamSkippedError) as skipped, breaker.guard():
        raise AssertionError
    return skipped.value


def test_outcome_of_the_trial_opens_or_closes_the_breaker(clock: Clock) -> None:
    breaker = make_breaker(failures=1, seconds=60, clock=clock)

    fail(breaker)
    clock.now = NOW + 59
    assert skip(breaker).retry_after_seconds == 1
    clock.now = NOW + 60
    fail(breaker)
    clock.now = NOW + 119
    skip(breaker)
    clock.now = NOW + 120
    succeed(breaker)
    succeed(breaker)
    assert not breaker.is_open


def test_half_open_breaker_lets_one_call_through(clock: Clock) -> None:
    breaker = make_breaker(failures=1, seconds=0, clock=clock)
    fail(breaker)

    with breaker.guard():
        skip(breaker)

    with breaker.guard():
        succeed(breaker)
    assert not breaker.is_open


def test_cancelled_trial_leaves_breaker_open(clock: Clock) -> None:
    breaker = make_breaker(failures=1, seconds=0, clock=clock)
    fail(breaker)

    with pytest.raises(asyncio.CancelledError), breaker.guard():
        raise asyncio.CancelledError

    assert breaker.is_open
    succeed(breaker)
    assert not breaker.is_open


def test_success_resets_the_count_of_failures(clock: Clock) -> None:
    breaker = make_breaker(failures=2, seconds=60, clock=clock)

    fail(breaker)
    succeed(breaker)
    fail(breaker)
    assert not breaker.is_open


async def fetch_value() -> str:
    return "new"


async def fetch_in_vain() -> str:
    raise TransientUpstreamError("no")


async def test_value_is_fresh_then_stale_then_gone(clock: Clock) -> None:
    cache = StaleCache[str, str](fresh_seconds=60, stale_seconds=40, size=10, clock=clock)

    assert await cache.get("a", fetch_value) == CachedValue("new")
    clock.now = NOW + 59
    assert await cache.get("a", fetch_in_vain) == CachedValue("new")
    for clock.now in (NOW + 60, NOW + 99):
        assert await cache.get("a", fetch_in_vain) == CachedValue("new", is_stale=True)
    clock.now = NOW + 100
    with pytest.raises(TransientUpstreamError):
        await cache.get("a", fetch_in_vain)


async def test_expired_value_is_fetched_again(clock: Clock) -> None:
    cache = StaleCache[str, float](fresh_seconds=60, stale_seconds=0, size=10, clock=clock)

    async def read_clock() -> float:
        return clock.now

    values = []
    for clock.now in (NOW, NOW + 59, NOW + 60, NOW + 119):
        values.append((await cache.get("a", read_clock)).value)

    assert values == [NOW, NOW, NOW + 60, NOW + 60]


async def test_stale_value_does_not_hide_other_errors(clock: Clock) -> None:
    cache = StaleCache[str, str](fresh_seconds=0, stale_seconds=60, size=10, clock=clock)

    async def refuse() -> str:
        raise UpstreamRefusedError("no", 404)

    await cache.get("a", fetch_value)
    with pytest.raises(UpstreamRefusedError):
        await cache.get("a", refuse)


async def test_concurrent_misses_share_a_fetch_and_a_cancelled_caller_does_not_end_it(clock: Clock) -> None:
    cache = StaleCache[str, str](fresh_seconds=60, stale_seconds=60, size=10, clock=clock)
    ready = asyncio.Event()
    fetches = []

    async def fetch_when_ready() -> str:
        fetches.append("once")
        await ready.wait()
        return "new"

    waiting = [asyncio.create_task(cache.get("a", fetch_when_ready)) for _ in range(100)]
    await wait_until(lambda: bool(fetches))
    waiting[0].cancel()
    await asyncio.sleep(0)
    ready.set()

    assert {cached.value for cached in await asyncio.gather(*waiting[1:])} == {"new"}
    assert fetches == ["once"]


async def test_cache_evicts_the_least_recently_used_key(clock: Clock) -> None:
    cache = StaleCache[str, str](fresh_seconds=60, stale_seconds=60, size=2, clock=clock)
    fetches = []

    async def fetch_key(key: str) -> str:
        fetches.append(key)
        return key

    for key in ("a", "b", "a", "c", "a", "b"):
        await cache.get(key, lambda key=key: fetch_key(key))  # type: ignore[misc]  # mypy infers no default of a lambda

    assert fetches == ["a", "b", "c", "b"]


async def test_close_cancels_running_fetches(clock: Clock) -> None:
    cache = StaleCache[str, str](fresh_seconds=60, stale_seconds=60, size=10, clock=clock)
    before = asyncio.all_tasks()

    async def hang_for_long() -> str:
        await asyncio.sleep(600)
        raise AssertionError

    waiting = asyncio.create_task(cache.get("a", hang_for_long))
    await wait_until(lambda: len(asyncio.all_tasks()) == len(before) + 2)
    await cache.close()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == before
