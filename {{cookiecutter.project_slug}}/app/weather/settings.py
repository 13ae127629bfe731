from pydantic import Field, SecretStr

from app.core.config import FeatureSettings


class WeatherSettings(FeatureSettings):
    weather_api_key: SecretStr | None = Field(default=None, min_length=1)
    weather_base_url: str = Field(
        default="https://api.openweathermap.org/data/2.5", pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$"
    )
    weather_timeout_seconds: float = Field(default=5, gt=0)
    weather_connect_timeout_seconds: float = Field(default=2, gt=0)
    weather_retry_limit: int = Field(default=2, ge=0)
    weather_retry_seconds: float = Field(default=0.2, gt=0)
    weather_concurrency: int = Field(default=10, ge=1)
    weather_breaker_failures: int = Field(default=5, ge=1)
    weather_breaker_seconds: float = Field(default=30, gt=0)
    weather_cache_seconds: float = Field(default=600, ge=0)
    weather_stale_seconds: float = Field(default=6 * 3600, ge=0)
    weather_cache_size: int = Field(default=1000, ge=1)

    @property
    def notes(self) -> list[str]:
        if self.weather_api_key is None:
            return ["WEATHER_API_KEY is not set: GET /weather answers 503"]
        return []
