"""The HTTP client for other services, against the fake of `tests/support/outgoing.py` and against real sockets."""

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from app.core.config.server import ServerSettings
from app.core.dependencies import HttpClientDep
from app.core.observability.logging import configure_logging
from app.core.upstream.http_client import (
    LazyHttpClient,
    ResponseTooLargeError,
    describe_failure,
    open_http_client,
    read_body,
)
from tests.support.certificates import make_certificate
from tests.support.outgoing import Outgoing
from tests.support.proxies import run_proxy, run_service, set_proxy
from tests.support.sockets import hold_port

RATES = "https://rates.example.com/latest"
SECRET = "0f1e2d3c4b5a6978"
HEADERS = f"Content-Length: 2\r\nSet-Cookie: session={SECRET}\r\n"


async def read_rates(http: HttpClientDep, query: str = "") -> object:
    response = await http.get(RATES, params=query)
    return response.json()


@pytest.fixture
async def client(app: FastAPI, client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """A client of the service, with an added route that calls another service."""
    app.add_api_route("/rates", read_rates)
    return client


def make_tls(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """Return a certificate that no machine trusts, and the TLS context of its server."""
    certificate = make_certificate(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return certificate, context


@pytest.fixture
async def http(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LazyHttpClient]:
    """The HTTP client for other services on real sockets, without the proxies of this machine."""
    set_proxy(monkeypatch, "")
    async with open_http_client(max_connections=10) as http:
        yield http


async def test_route_calls_another_service(client: httpx2.AsyncClient, outgoing: Outgoing) -> None:
    outgoing.answer("GET", RATES, json={"EUR": 1})

    response = await client.get("/rates", params={"query": "base=USD"})

    assert response.json() == {"EUR": 1}
    assert [str(request.url) for request in outgoing.requests] == [f"{RATES}?base=USD"]


async def test_call_has_the_id_of_its_request(client: httpx2.AsyncClient, outgoing: Outgoing) -> None:
    outgoing.answer("GET", RATES, json={})

    await client.get("/rates", headers={"X-Request-ID": "request-0123"})

    assert outgoing.requests[0].headers["x-request-id"] == "client-request-0123"


async def test_call_is_logged_without_path_and_query(
    client: httpx2.AsyncClient, outgoing: Outgoing, logs: io.StringIO
) -> None:
    outgoing.answer("GET", RATES, json={})

    await client.get("/rates", params={"query": f"key={SECRET}"}, headers={"X-Request-ID": "request-0123"})

    (line,) = [event for event in map(json.loads, logs.getvalue().splitlines()) if event["event"] == "outgoing request"]
    assert line.items() >= {"method": "GET", "host": "rates.example.com", "status": 200}.items()
    assert line["request_id"] == "client-request-0123"
    assert "latest" not in str(line)
    assert SECRET not in logs.getvalue()


async def test_responses_are_used_in_turn_and_the_last_repeats(client: httpx2.AsyncClient, outgoing: Outgoing) -> None:
    outgoing.answer("GET", RATES, json=1)
    outgoing.answer("GET", RATES, json=2)
    outgoing.answer("GET", f"{RATES}?base=USD", json=3)

    answers = [(await client.get("/rates", params={"query": query})).json() for query in ("", "base=USD", "", "a=b")]

    assert answers == [1, 3, 2, 2]


async def test_failure_is_raised_by_the_client(client: httpx2.AsyncClient, outgoing: Outgoing) -> None:
    outgoing.fail("GET", RATES, httpx2.ConnectError("refused"))

    response = await client.get("/rates")

    assert response.status_code == 500
    assert outgoing.requests[0].extensions["timeout"] == {"connect": 5, "read": 10, "write": 10, "pool": 10}


async def test_unexpected_call_fails_the_test(client: httpx2.AsyncClient, outgoing: Outgoing) -> None:
    outgoing.answer("POST", RATES)

    with pytest.raises(pytest.fail.Exception, match=f"does not expect: GET {RATES}"):
        await client.get("/rates")

    assert outgoing.unexpected == [f"GET {RATES}"]
    outgoing.unexpected.clear()


async def test_cookies_of_one_call_are_not_sent_with_the_next(client: httpx2.AsyncClient, outgoing: Outgoing) -> None:
    outgoing.answer("GET", RATES, json={}, headers={"Set-Cookie": f"session={SECRET}; Path=/"})

    for _ in range(2):
        await client.get("/rates")

    assert ["cookie" in request.headers for request in outgoing.requests] == [False, False]


async def test_redirects_are_not_followed(http: LazyHttpClient) -> None:
    async with run_service("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n") as port:
        response = await (await http.get()).get(f"http://127.0.0.1:{port}/")

    assert response.status_code == 302


async def test_body_is_read_up_to_a_limit(http: LazyHttpClient) -> None:
    client = await http.get()
    async with (
        run_service(f"HTTP/1.1 200 OK\r\n\r\n{'x' * 100}") as port,
        client.stream("GET", f"http://127.0.0.1:{port}/") as accepted,
        client.stream("GET", f"http://127.0.0.1:{port}/") as refused,
    ):
        body = await read_body(accepted, max_bytes=100)
        with pytest.raises(ResponseTooLargeError, match="99"):
            await read_body(refused, max_bytes=99)

    assert body == b"x" * 100
    assert accepted.request.headers["accept-encoding"] == "identity"


async def test_client_is_shared_and_closed(http: LazyHttpClient) -> None:
    client, other = await asyncio.gather(http.get(), http.get())
    await http.close()

    assert client is other
    assert client.is_closed


async def test_log_contains_nothing_of_requests_and_responses(
    http: LazyHttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    configure_logging(ServerSettings(_env_file=None, log_format="json", log_level="DEBUG"))

    async with run_service(f"HTTP/1.1 200 OK\r\n{HEADERS}\r\n" + "{}") as port:
        await (await http.get()).get(
            f"http://127.0.0.1:{port}/{SECRET}?key={SECRET}", headers={"Authorization": SECRET}
        )

    assert "outgoing request" in stream.getvalue()
    assert SECRET not in stream.getvalue()


async def test_proxy_of_the_environment_is_used(http: LazyHttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async with run_service(f"HTTP/1.1 200 OK\r\n{HEADERS}\r\n" + "{}") as port, run_proxy(port) as proxy:
        set_proxy(monkeypatch, proxy.url, no_proxy="127.0.0.1")
        client = await http.get()
        through_proxy = await client.get("http://rates.example.com/latest")
        direct = await client.get(f"http://127.0.0.1:{port}/")

    assert (through_proxy.status_code, direct.status_code) == (200, 200)
    assert proxy.asked == ["GET http://rates.example.com/latest HTTP/1.1"]


async def test_https_uses_the_proxy_and_the_certificates_of_the_machine(
    http: LazyHttpClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificate, tls = make_tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with run_service(f"HTTP/1.1 200 OK\r\n{HEADERS}\r\n" + "{}", tls) as port, run_proxy(port) as proxy:
        set_proxy(monkeypatch, proxy.url)
        response = await (await http.get()).get(f"https://127.0.0.1:{port}/?key={SECRET}")

    assert response.json() == {}
    assert proxy.asked == [f"CONNECT 127.0.0.1:{port} HTTP/1.1"]


async def test_description_of_a_failure_names_the_reason(http: LazyHttpClient, tmp_path: Path) -> None:
    client = await http.get()
    with hold_port() as held, pytest.raises(httpx2.ConnectError) as refused:
        await client.get(f"http://127.0.0.1:{held.getsockname()[1]}/?key={SECRET}")
    async with run_service("", make_tls(tmp_path)[1]) as port:
        with pytest.raises(httpx2.ConnectError) as untrusted:
            await client.get(f"https://127.0.0.1:{port}/?key={SECRET}")

    assert describe_failure(refused.value).startswith("ConnectError: [Errno ")
    assert describe_failure(untrusted.value).startswith("ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED]")
    assert SECRET not in describe_failure(refused.value) + describe_failure(untrusted.value)


async def test_description_of_a_failure_names_the_last_of_several_addresses() -> None:
    attempts = ExceptionGroup("attempts", [OSError("the first"), OSError("the second")])
    error = httpx2.ConnectError("All connection attempts failed")
    error.__cause__ = OSError("All connection attempts failed")
    error.__cause__.__cause__ = attempts

    assert describe_failure(error) == "ConnectError: the second"


async def test_description_of_a_failure_quotes_no_response(http: LazyHttpClient) -> None:
    client = await http.get()
    async with run_service(f"{SECRET}\r\n\r\n") as port:
        with pytest.raises(httpx2.RemoteProtocolError, match=SECRET) as failure:
            await client.get(f"http://127.0.0.1:{port}/")

    assert describe_failure(failure.value) == "RemoteProtocolError"
