"""Ask an OpenWeatherMap-compatible service, and make a clear error of whatever goes wrong."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import httpx2
import structlog
from pydantic import SecretStr, ValidationError

from app.core.exceptions import NotFoundError
from app.weather.breaker import Breaker
from app.weather.exceptions import (
    BadAnswerError,
    BusyError,
    CutShortError,
    NotAskedError,
    PassingError,
    PlaceRefusedError,
    TooSlowError,
    UnreachableError,
    UpstreamError,
)
from app.weather.schemas import Place, UpstreamWeather
from app.weather.settings import WeatherSettings

logger = structlog.get_logger(__name__)

MAX_ANSWER_BYTES = 64 * 1024
DEFAULT_PAUSE_SECONDS = 30
MAX_PAUSE_SECONDS = 3600
# Of the timeout: who waits for a place has to leave the service time to answer.
WAITING_SHARE = 0.5
# Of the timeout: what had less and was cut off tells of us, and not of the service.
FAIR_SHARE = 0.25

StatusAndBody: TypeAlias = tuple[int, bytes]


class KeyTransport(httpx2.AsyncHTTPTransport):
    """Add the key below the client, whose log lines and errors hold the URL that it was given."""

    def __init__(self, key: SecretStr, concurrency: int) -> None:
        super().__init__(
            # How many are open is bounded before, where who waits is answered in time.
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=concurrency),
        )
        self._key = key

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url.copy_add_param("appid", self._key.get_secret_value())
        keyed = httpx2.Request(
            request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions
        )
        return await super().handle_async_request(keyed)


@asynccontextmanager
async def open_client(settings: WeatherSettings) -> AsyncIterator["WeatherClient"]:
    if settings.weather_api_key is None:
        yield WeatherClient(settings, None)
        return
    timeout = httpx2.Timeout(settings.weather_timeout_seconds, connect=settings.weather_connect_timeout_seconds)
    async with httpx2.AsyncClient(
        base_url=settings.weather_base_url,
        # No other encoding: a small answer that unpacks to a huge one stays small.
        headers={"Accept": "application/json", "Accept-Encoding": "identity"},
        timeout=timeout,
        transport=KeyTransport(settings.weather_api_key, settings.weather_concurrency),
    ) as http:
        yield WeatherClient(settings, http)


class WeatherClient:
    def __init__(self, settings: WeatherSettings, http: httpx2.AsyncClient | None) -> None:
        self._settings = settings
        self._http = http
        self._places = asyncio.Semaphore(settings.weather_concurrency)
        self._breaker = Breaker(settings.weather_breaker_failures, settings.weather_breaker_seconds)

    async def fetch(self, place: Place) -> UpstreamWeather:
        """Take no longer than the timeout in all; raises UpstreamError, NotFoundError or PlaceRefusedError."""
        if self._http is None:
            raise NotAskedError("WEATHER_API_KEY is not set: this service cannot ask for the weather.", 3600)
        timeout = self._settings.weather_timeout_seconds
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            async with asyncio.timeout(timeout * WAITING_SHARE):
                await self._places.acquire()
        except TimeoutError:
            raise NotAskedError("Too many ask for the weather at once.") from None
        try:
            return await self._ask_repeatedly(self._http, place, deadline)
        finally:
            self._places.release()

    async def _ask_repeatedly(self, http: httpx2.AsyncClient, place: Place, deadline: float) -> UpstreamWeather:
        loop = asyncio.get_running_loop()
        for attempt in range(self._settings.weather_retry_limit + 1):
            try:
                return await self._ask(http, place, deadline)
            except UpstreamError as error:
                pause = self._settings.weather_retry_seconds * 2**attempt * random.uniform(0.5, 1)  # noqa: S311  # no secret
                is_last = attempt == self._settings.weather_retry_limit
                if is_last or not error.is_passing or self._breaker.is_open or loop.time() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError

    async def _ask(self, http: httpx2.AsyncClient, place: Place, deadline: float) -> UpstreamWeather:
        remaining = deadline - asyncio.get_running_loop().time()
        is_fair = remaining >= self._settings.weather_timeout_seconds * FAIR_SHARE
        with self._breaker.guard():
            try:
                async with asyncio.timeout_at(deadline):
                    status, body = await _exchange(http, place)
            except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout):
                too_slow = TooSlowError if is_fair else CutShortError
                raise too_slow("The weather service did not answer in time.") from None
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                raise UnreachableError("The weather service is out of reach.") from None
            # Whatever else the library raises about an answer that is none. Its text may hold parts of that.
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError):
                raise PassingError("The weather service broke off its answer.") from None
            weather = _read_answer(status, body)
        if weather is None:
            raise _refusal(status)
        return weather


async def _exchange(http: httpx2.AsyncClient, place: Place) -> StatusAndBody:
    params = {"q": place.query, "units": place.units.value}
    async with http.stream("GET", "weather", params=params) as response:
        if response.status_code == httpx2.codes.TOO_MANY_REQUESTS:
            raise BusyError("The weather service asks for a pause.", _read_pause(response))
        body = b""
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise BadAnswerError("The weather service answered far too much.")
        return response.status_code, body


def _read_pause(response: httpx2.Response) -> float:
    """In seconds, or as a date, which is not worth to be read."""
    value = response.headers.get("Retry-After", "")
    return min(int(value), MAX_PAUSE_SECONDS) if value.isdecimal() and len(value) < 10 else DEFAULT_PAUSE_SECONDS


def _read_answer(status: int, body: bytes) -> UpstreamWeather | None:
    """Return nothing for a refusal that is the caller's doing; raises UpstreamError."""
    if status == httpx2.codes.OK:
        try:
            return UpstreamWeather.model_validate_json(body)
        except ValidationError:
            raise BadAnswerError("The weather service answered something else than the weather.") from None
    if status in {httpx2.codes.BAD_REQUEST, httpx2.codes.NOT_FOUND}:
        return None
    if status in {httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN}:
        logger.error("the weather service refuses WEATHER_API_KEY", status=status)
        raise BadAnswerError("The weather service does not accept this service.")
    if status >= 500:
        raise PassingError("The weather service has failed.")
    raise BadAnswerError("The weather service answered something unexpected.")


def _refusal(status: int) -> PlaceRefusedError | NotFoundError:
    if status == httpx2.codes.NOT_FOUND:
        return NotFoundError("The weather service knows no such place.")
    return PlaceRefusedError("The weather service cannot make sense of this place.")
