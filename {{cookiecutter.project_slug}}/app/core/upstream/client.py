import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from app.core.upstream.breaker import Breaker
from app.core.upstream.errors import (
    InvalidUpstreamResponseError,
    TransientUpstreamError,
    UpstreamCredentialsError,
    UpstreamRateLimitedError,
    UpstreamRefusedError,
    UpstreamSkippedError,
    UpstreamTimeoutError,
    UpstreamTimeoutTooShortError,
    UpstreamUnreachableError,
)
from app.core.upstream.http_client import LazyHttpClient, ResponseTooLargeError, read_body

DEFAULT_RETRY_AFTER_SECONDS = 30
MAX_RETRY_AFTER_SECONDS = 3600
# Statuses for which the request is at fault, not the upstream: they are not counted as failures.
REFUSALS = frozenset({400, 404, 409, 410, 422})

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class UpstreamOptions:
    # Bounds a call as a whole: waiting for a slot, all attempts, and the pauses between them.
    timeout_seconds: float = 5
    connect_timeout_seconds: float = 2
    retry_limit: int = 2
    # The pause before the first retry; it doubles with each further one.
    retry_seconds: float = 0.2
    concurrency: int = 10
    breaker_failures: int = 5
    breaker_seconds: float = 30
    max_response_bytes: int = 64 * 1024
    # The share of the timeout that may be spent waiting for a slot; the rest is left for the upstream.
    max_queue_share: float = 0.5
    # An attempt that times out counts as a failure of the upstream only if at least this share of `timeout_seconds` was
    # left when the attempt began.
    min_attempt_share: float = 0.25


class _Request(NamedTuple):
    url: str
    params: Mapping[str, str] | None
    headers: Mapping[str, str]


class UpstreamClient:
    """Sends GET requests to one other service; `name` is part of error texts, such as "The {name} cannot be reached."

    Only GET, because a retry must not repeat a change.
    """

    def __init__(self, name: str, base_url: str, http: LazyHttpClient, options: UpstreamOptions) -> None:
        self._name = name
        self._base_url = base_url.rstrip("/")
        self._http = http
        self._options = options
        self._slots = asyncio.Semaphore(options.concurrency)
        self._breaker = Breaker(name, failures=options.breaker_failures, seconds=options.breaker_seconds)

    async def get(
        self,
        path: str,
        model: type[Model],
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Model:
        """Return the JSON response, validated as `model`.

        Raises UpstreamError, or UpstreamRefusedError if the upstream answers 400, 404, 409, 410 or 422.
        """
        timeout = self._options.timeout_seconds
        deadline = asyncio.get_running_loop().time() + timeout
        request = _Request(f"{self._base_url}{path}", params, {"Accept": "application/json", **(headers or {})})
        try:
            async with asyncio.timeout(timeout * self._options.max_queue_share):
                await self._slots.acquire()
        except TimeoutError:
            raise UpstreamSkippedError(
                f"Too many concurrent requests to the {self._name}. Try again in a moment."
            ) from None
        try:
            return await self._send_with_retries(request, model, deadline)
        finally:
            self._slots.release()

    async def _send_with_retries(self, request: _Request, model: type[Model], deadline: float) -> Model:
        options = self._options
        retries = 0
        while True:
            try:
                return await self._send(request, model, deadline)
            except TransientUpstreamError:
                # The random factor spreads the retries of several callers.
                pause = options.retry_seconds * 2**retries * random.uniform(0.5, 1)  # noqa: S311  # no secret
                is_too_late = asyncio.get_running_loop().time() + pause >= deadline
                if retries == options.retry_limit or self._breaker.is_open or is_too_late:
                    raise
            await asyncio.sleep(pause)
            retries += 1

    async def _send(self, request: _Request, model: type[Model], deadline: float) -> Model:
        remaining = deadline - asyncio.get_running_loop().time()
        is_fair = remaining >= self._options.timeout_seconds * self._options.min_attempt_share
        with self._breaker.guard():
            try:
                async with asyncio.timeout_at(deadline):
                    status, body = await self._exchange(request)
            except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout) as error:
                timed_out = UpstreamTimeoutError if is_fair else UpstreamTimeoutTooShortError
                raise timed_out(f"The {self._name} did not respond in time.") from error
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
                raise UpstreamUnreachableError(f"The {self._name} cannot be reached.") from error
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
                raise TransientUpstreamError(f"The {self._name}'s response was incomplete or invalid.") from error
            if status not in REFUSALS:
                return self._parse(status, body, model)
        raise UpstreamRefusedError(f"The {self._name} refused the request.", status)

    async def _exchange(self, request: _Request) -> tuple[int, bytes]:
        options = self._options
        http = await self._http.get()
        async with http.stream(
            "GET",
            request.url,
            params=request.params,
            headers=request.headers,
            timeout=httpx2.Timeout(options.timeout_seconds, connect=options.connect_timeout_seconds),
        ) as response:
            if response.status_code == httpx2.codes.TOO_MANY_REQUESTS:
                raise UpstreamRateLimitedError(f"The {self._name}'s rate limit is exceeded.", _retry_after(response))
            try:
                return response.status_code, await read_body(response, options.max_response_bytes)
            except ResponseTooLargeError as error:
                raise InvalidUpstreamResponseError(f"The {self._name}'s response was too large.") from error

    def _parse(self, status: int, body: bytes, model: type[Model]) -> Model:
        if status == httpx2.codes.OK:
            try:
                return model.model_validate_json(body)
            except ValidationError as error:
                raise InvalidUpstreamResponseError(f"The {self._name}'s response has an unknown format.") from error
        if status in {httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN}:
            raise UpstreamCredentialsError(f"The {self._name} refuses the credentials of this service.")
        if status >= 500:
            raise TransientUpstreamError(f"The {self._name} reported an error.")
        raise InvalidUpstreamResponseError(f"The {self._name} sent an unexpected response.")


def _retry_after(response: httpx2.Response) -> float:
    """Return the seconds in Retry-After, up to the maximum; the default if it is missing or a date, which is rare."""
    value = response.headers.get("Retry-After", "")
    is_seconds = value.isdecimal() and len(value) < 10
    return min(int(value), MAX_RETRY_AFTER_SECONDS) if is_seconds else DEFAULT_RETRY_AFTER_SECONDS
