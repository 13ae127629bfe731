"""Ask an OpenWeatherMap-compatible service, and make a clear error of whatever goes wrong."""

import asyncio
import random
from typing import TypeAlias

import httpx2
import structlog
from pydantic import SecretStr, ValidationError

from app.core.errors import NotFoundError
from app.core.http_client import LazyHttpClient, ResponseTooLargeError, read_body
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


class WeatherClient:
    def __init__(self, settings: WeatherSettings, http: LazyHttpClient) -> None:
        self._settings = settings
        self._http = http
        self._key = settings.weather_api_key or SecretStr("")
        self._places = asyncio.Semaphore(settings.weather_concurrency)
        self._breaker = Breaker(settings.weather_breaker_failures, settings.weather_breaker_seconds)

    async def fetch(self, place: Place) -> UpstreamWeather:
        """Take no longer than the timeout in all; raises UpstreamError, NotFoundError or PlaceRefusedError."""
        if not self._key:
            raise NotAskedError("WEATHER_API_KEY is not set: this service cannot ask for the weather.", 3600)
        timeout = self._settings.weather_timeout_seconds
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            async with asyncio.timeout(timeout * WAITING_SHARE):
                await self._places.acquire()
        except TimeoutError:
            raise NotAskedError("Too many ask for the weather at once.") from None
        try:
            return await self._ask_repeatedly(place, deadline)
        finally:
            self._places.release()

    async def _ask_repeatedly(self, place: Place, deadline: float) -> UpstreamWeather:
        loop = asyncio.get_running_loop()
        for attempt in range(self._settings.weather_retry_limit + 1):
            try:
                return await self._ask(place, deadline)
            except UpstreamError as error:
                pause = self._settings.weather_retry_seconds * 2**attempt * random.uniform(0.5, 1)  # noqa: S311  # no secret
                is_last = attempt == self._settings.weather_retry_limit
                if is_last or not error.is_passing or self._breaker.is_open or loop.time() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)
        raise AssertionError

    async def _ask(self, place: Place, deadline: float) -> UpstreamWeather:
        remaining = deadline - asyncio.get_running_loop().time()
        is_fair = remaining >= self._settings.weather_timeout_seconds * FAIR_SHARE
        with self._breaker.guard():
            try:
                async with asyncio.timeout_at(deadline):
                    status, body = await self._exchange(place)
            except (TimeoutError, httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout) as error:
                too_slow = TooSlowError if is_fair else CutShortError
                raise too_slow("The weather service did not answer in time.") from error
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
                raise UnreachableError("The weather service is out of reach.") from error
            # Whatever else the library raises about an invalid response.
            except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
                raise PassingError("The weather service broke off its answer.") from error
            weather = _read_answer(status, body)
        if weather is None:
            raise _refusal(status)
        return weather

    async def _exchange(self, place: Place) -> StatusAndBody:
        settings = self._settings
        timeout = httpx2.Timeout(settings.weather_timeout_seconds, connect=settings.weather_connect_timeout_seconds)
        http = await self._http.get()
        async with http.stream(
            "GET",
            f"{settings.weather_base_url.rstrip('/')}/weather",
            params={"q": place.query, "units": place.units.value, "appid": self._key.get_secret_value()},
            headers={"Accept": "application/json"},
            timeout=timeout,
        ) as response:
            if response.status_code == httpx2.codes.TOO_MANY_REQUESTS:
                raise BusyError("The weather service asks for a pause.", _read_pause(response))
            try:
                return response.status_code, await read_body(response, MAX_ANSWER_BYTES)
            except ResponseTooLargeError as error:
                raise BadAnswerError("The weather service answered far too much.") from error


def _read_pause(response: httpx2.Response) -> float:
    """In seconds, or as a date, which is not worth to be read."""
    value = response.headers.get("Retry-After", "")
    return min(int(value), MAX_PAUSE_SECONDS) if value.isdecimal() and len(value) < 10 else DEFAULT_PAUSE_SECONDS


def _read_answer(status: int, body: bytes) -> UpstreamWeather | None:
    """Return nothing for a refusal that is the caller's doing; raises UpstreamError."""
    if status == httpx2.codes.OK:
        try:
            return UpstreamWeather.model_validate_json(body)
        except ValidationError as error:
            raise BadAnswerError("The weather service answered something else than the weather.") from error
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
