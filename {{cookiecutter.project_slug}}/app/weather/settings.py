from pydantic import Field, SecretStr

from app.core.config.base import MAX_LIFETIME_SECONDS, Count, FeatureSettings, Url, Wait
from app.core.upstream.client import UpstreamOptions


class WeatherSettings(FeatureSettings):
    weather_api_key: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="API key of OpenWeatherMap or a compatible service. Unset: `GET /weather` answers 503.",
    )
    weather_base_url: Url = Field(
        default="https://api.openweathermap.org/data/2.5",
        description="URL of the weather service.",
    )
    weather_timeout_seconds: Wait = Field(
        default=5,
        description="Longest time for a response of the weather service, over all attempts; after that, the request"
        " gets a stale response from the cache, or a 504.",
    )
    weather_connect_timeout_seconds: Wait = Field(
        default=2,
        description="Longest time to connect to the weather service; after that, the attempt fails.",
    )
    weather_retry_limit: int = Field(
        default=2,
        ge=0,
        le=1000,
        description="Maximum number of retries after a request to the weather service has failed.",
    )
    weather_retry_seconds: Wait = Field(
        default=0.2,
        description="Delay before the first retry; the delay doubles with each later retry, and jitter shortens it by"
        " up to half.",
    )
    weather_requests_per_minute: Count = Field(
        default=60,
        description="Maximum number of requests per minute that each worker sends to the weather service for one"
        " account; a request beyond the maximum gets a 429. Responses from the cache do not count.",
    )
    weather_concurrency: Count = Field(
        default=10,
        description="Maximum number of concurrent requests from each worker to the weather service. A request beyond"
        " the maximum waits for up to half of `WEATHER_TIMEOUT_SECONDS`, then gets a stale response from the cache, or"
        " a 503.",
    )
    weather_breaker_failures: Count = Field(
        default=5,
        description="Number of consecutive failures after which the circuit breaker stops requests to the weather"
        " service.",
    )
    weather_breaker_seconds: Wait = Field(
        default=30,
        description="How long the circuit breaker stops requests to the weather service; after that, the outcome of one"
        " trial request decides whether it allows requests again.",
    )
    weather_cache_seconds: float = Field(
        default=600,
        ge=0,
        le=MAX_LIFETIME_SECONDS,
        description="How long a cached response is fresh, so that the weather service is not asked again.",
    )
    weather_stale_seconds: float = Field(
        default=6 * 3600,
        ge=0,
        le=MAX_LIFETIME_SECONDS,
        description="How long after the end of `WEATHER_CACHE_SECONDS` a cached response may still be used if the"
        " weather service fails.",
    )
    weather_cache_size: Count = Field(
        default=1000,
        description="Maximum number of responses in the cache of each worker; beyond the maximum, the least recently"
        " used one is removed.",
    )

    @property
    def upstream_options(self) -> UpstreamOptions:
        return UpstreamOptions(
            timeout_seconds=self.weather_timeout_seconds,
            connect_timeout_seconds=self.weather_connect_timeout_seconds,
            retry_limit=self.weather_retry_limit,
            retry_seconds=self.weather_retry_seconds,
            concurrency=self.weather_concurrency,
            breaker_failures=self.weather_breaker_failures,
            breaker_seconds=self.weather_breaker_seconds,
        )

    @property
    def notes(self) -> list[str]:
        if self.weather_api_key is None:
            return ["WEATHER_API_KEY is not set: GET /weather answers 503"]
        return []
