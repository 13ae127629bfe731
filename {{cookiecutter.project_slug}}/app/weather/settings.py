from pydantic import Field, SecretStr

from app.core.config import MAX_LIFETIME_SECONDS, Count, FeatureSettings, Url, Wait
from app.core.upstream.client import UpstreamOptions


class WeatherSettings(FeatureSettings):
    weather_api_key: SecretStr | None = Field(default=None, min_length=1)
    weather_base_url: Url = "https://api.openweathermap.org/data/2.5"
    weather_timeout_seconds: Wait = 5
    weather_connect_timeout_seconds: Wait = 2
    weather_retry_limit: int = Field(default=2, ge=0, le=1000)
    weather_retry_seconds: Wait = 0.2
    weather_requests_per_minute: Count = 60
    weather_concurrency: Count = 10
    weather_breaker_failures: Count = 5
    weather_breaker_seconds: Wait = 30
    weather_cache_seconds: float = Field(default=600, ge=0, le=MAX_LIFETIME_SECONDS)
    weather_stale_seconds: float = Field(default=6 * 3600, ge=0, le=MAX_LIFETIME_SECONDS)
    weather_cache_size: Count = 1000

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
