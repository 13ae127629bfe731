"""Responses and failures of an upstream server that misbehaves."""

import io
import json
import math
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from app.core.upstream.errors import (
    InvalidUpstreamResponseError,
    TransientUpstreamError,
    UpstreamCredentialsError,
    UpstreamError,
    UpstreamRateLimitedError,
    UpstreamRefusedError,
    UpstreamTimeoutError,
    UpstreamUnreachableError,
)
from app.core.upstream.http_client import LazyHttpClient
from tests.support.outgoing import Outgoing
from tests.support.sockets import hold_port
from tests.support.upstream_client import FAILS, RATES, SECRET, Rates, fetch, make_client
from tests.support.upstream_server import Behaviour, UpstreamServer, answer, break_off, hang_up, in_turn, never_end


async def test_response_is_validated(server: UpstreamServer, http: LazyHttpClient) -> None:
    received = []

    def record(handler: Any) -> None:  # noqa: ANN401  # the server's handler
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
