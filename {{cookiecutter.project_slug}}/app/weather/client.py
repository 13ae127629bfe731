from typing import TypeAlias
from uuid import UUID

import structlog

from app.core.errors import AppError, NotFoundError
from app.core.security.throttling import RateLimit
from app.core.upstream.cache import CachedValue, StaleCache
from app.core.upstream.client import UpstreamClient
from app.core.upstream.errors import UpstreamCredentialsError, UpstreamRefusedError, UpstreamSkippedError
from app.core.upstream.http_client import LazyHttpClient
from app.weather.schemas import Place, Units, UpstreamWeather
from app.weather.settings import WeatherSettings

logger = structlog.get_logger(__name__)

WITHOUT_KEY_RETRY_SECONDS = 3600
PlaceKey: TypeAlias = tuple[str, Units]


class InvalidPlaceError(AppError):
    status = 400
    code = "invalid-place"


class WeatherClient:
    """Reads the weather from OpenWeatherMap or a compatible service.

    Each process has one client, so that all requests share its cache and its circuit breaker.
    """

    def __init__(self, settings: WeatherSettings, http: LazyHttpClient) -> None:
        self._api_key = settings.weather_api_key
        self._upstream = UpstreamClient("weather service", settings.weather_base_url, http, settings.upstream_options)
        # A limit for each account: one account must not use up the quota that all accounts share.
        self._rate_limit = RateLimit(settings.weather_requests_per_minute)
        self._cache = StaleCache[PlaceKey, UpstreamWeather](
            fresh_seconds=settings.weather_cache_seconds,
            stale_seconds=settings.weather_stale_seconds,
            size=settings.weather_cache_size,
        )

    async def read(self, place: Place, account_id: UUID) -> CachedValue[UpstreamWeather]:
        """Return the weather of a place, from the cache if possible.

        Raises NotFoundError, InvalidPlaceError, UpstreamError or TooManyRequestsError.
        """
        if not self._cache.is_fresh(place.key):
            self._rate_limit.take(account_id)
        return await self._cache.get(place.key, lambda: self._fetch(place))

    async def _fetch(self, place: Place) -> UpstreamWeather:
        if self._api_key is None:
            raise UpstreamSkippedError(
                "The weather is not available: WEATHER_API_KEY is not set.", WITHOUT_KEY_RETRY_SECONDS
            )
        params = {"q": place.query, "units": place.units.value, "appid": self._api_key.get_secret_value()}
        try:
            return await self._upstream.get("/weather", UpstreamWeather, params=params)
        except UpstreamCredentialsError:
            logger.error("the weather service refuses WEATHER_API_KEY")
            raise
        except UpstreamRefusedError as error:
            if error.upstream_status == 404:
                raise NotFoundError("Place not found.", code="place-not-found") from error
            if error.upstream_status in {400, 422}:
                raise InvalidPlaceError(
                    "The weather service does not accept this place. Correct the city, state or country."
                ) from error
            raise

    async def close(self) -> None:
        await self._cache.close()
