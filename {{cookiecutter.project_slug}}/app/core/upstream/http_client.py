"""The HTTP client for calls to other services: one per process, shared by all features."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING

import structlog
from asgi_correlation_id import correlation_id

if TYPE_CHECKING:
    from httpx2 import AsyncBaseTransport, AsyncClient, Response
    from httpx2 import Request as OutgoingRequest

logger = structlog.get_logger(__name__)

# Timeout of each step of a call, such as waiting for the next bytes. Use `asyncio.timeout` to bound a whole call.
TIMEOUT_SECONDS = 10
CONNECT_TIMEOUT_SECONDS = 5


class ResponseTooLargeError(Exception):
    pass


class LazyHttpClient:
    """Opens the client at its first use, because httpx2 and the CA certificates cost 0.1 s and 5 MB."""

    def __init__(self, max_connections: int, transport: "AsyncBaseTransport | None" = None) -> None:
        self._max_connections = max_connections
        self._transport = transport
        self._client: AsyncClient | None = None
        self._lock = asyncio.Lock()

    async def get(self) -> "AsyncClient":
        async with self._lock:
            if self._client is None:
                # In a thread: importing httpx2 and loading the CA certificates would block the event loop.
                self._client = await asyncio.to_thread(_create_client, self._max_connections, self._transport)
            return self._client

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()


@asynccontextmanager
async def open_http_client(
    max_connections: int, transport: "AsyncBaseTransport | None" = None
) -> AsyncIterator[LazyHttpClient]:
    """Open a client that obeys HTTP_PROXY, HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE; tests pass a transport instead."""
    client = LazyHttpClient(max_connections, transport)
    try:
        yield client
    finally:
        await client.close()


def _create_client(max_connections: int, transport: "AsyncBaseTransport | None") -> "AsyncClient":
    from httpx2 import AsyncClient, Limits, Timeout

    return AsyncClient(
        transport=transport,
        timeout=Timeout(TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS),
        limits=Limits(max_connections=max_connections),
        # Request no compression, because a small compressed response could expand to a huge one.
        headers={"Accept-Encoding": "identity"},
        # Cookies are refused: they would carry one user's state into the requests of another.
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
        follow_redirects=False,
        event_hooks={"request": [_add_request_id], "response": [_log_response]},
    )


async def _add_request_id(request: "OutgoingRequest") -> None:
    if request_id := correlation_id.get():
        request.headers.setdefault("X-Request-ID", request_id)


async def _log_response(response: "Response") -> None:
    request = response.request
    # Only the host: paths and queries may contain secrets.
    logger.info("outgoing request", method=request.method, host=request.url.host, status=response.status_code)


async def read_body(response: "Response", max_bytes: int) -> bytes:
    """Read the body of a streamed response; raise ResponseTooLargeError if it exceeds `max_bytes`."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise ResponseTooLargeError(f"The response is larger than {max_bytes} bytes.")
    return bytes(body)


def describe_failure(error: BaseException) -> str:
    """Describe a failed call for the log: the error's type, and the message of the operating system or of TLS.

    Other messages are omitted: they may quote the response, which may repeat a secret of the request.
    """
    reason = ""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            reason = f": {cause}" if str(cause) else reason
        cause = _cause_of(cause)
    return f"{type(error).__name__}{reason}"


def _cause_of(error: BaseException) -> BaseException | None:
    if isinstance(error, BaseExceptionGroup):
        # The group has one exception for each address of the host.
        return error.exceptions[-1]
    # Also follow `__context__`, because httpcore2 raises its errors `from None`, without a cause.
    return error.__cause__ or error.__context__
