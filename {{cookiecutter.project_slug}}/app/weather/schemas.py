from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

from app.core.http.schemas import MultiLine, NonEmptyLine, RequestModel, ResponseModel, TimestampedModel

# The service separates the parts of a place with commas.
Part = Annotated[NonEmptyLine, StringConstraints(max_length=100, pattern="^[^,]+$")]
Country = Annotated[str, StringConstraints(pattern="^[A-Za-z]{2}$", to_upper=True)]


class Units(StrEnum):
    METRIC = "metric"
    IMPERIAL = "imperial"
    STANDARD = "standard"


class Place(BaseModel):
    model_config = ConfigDict(frozen=True)

    city: str
    state: str | None = None
    country: str | None = None
    units: Units = Units.METRIC

    @property
    def query(self) -> str:
        """The place as it was typed: case folding changes letters such as İ and ß."""
        return ",".join(part for part in (self.city, self.state, self.country) if part)

    @property
    def key(self) -> tuple[str, Units]:
        """The cache's key; the place is case-insensitive."""
        return self.query.lower(), self.units


class _Upstream(BaseModel):
    model_config = ConfigDict(hide_input_in_errors=True)


class UpstreamCondition(_Upstream):
    description: str = Field(max_length=500)


class UpstreamMeasurements(_Upstream):
    temp: FiniteFloat
    feels_like: FiniteFloat
    pressure: FiniteFloat
    humidity: FiniteFloat


class UpstreamWind(_Upstream):
    speed: FiniteFloat


class UpstreamSystem(_Upstream):
    country: str | None = Field(default=None, max_length=10)


class UpstreamWeather(_Upstream):
    """What is used of the answer of OpenWeatherMap's "current weather"."""

    name: str = Field(max_length=500)
    dt: AwareDatetime
    weather: list[UpstreamCondition] = Field(min_length=1, max_length=20)
    main: UpstreamMeasurements
    wind: UpstreamWind
    sys: UpstreamSystem


class WeatherRead(ResponseModel):
    city: str
    country: str | None
    description: str
    temperature: float
    feels_like: float
    humidity: float
    pressure: float
    wind_speed: float
    units: Units
    observed_at: datetime
    is_stale: bool = Field(description="The weather service is out of order, and this is its last answer.")


class WeatherReportCreate(RequestModel):
    city: NonEmptyLine
    country: Country
    temperature: Annotated[FiniteFloat, Field(ge=-100, le=100, description="Degrees Celsius.")]
    description: MultiLine = ""


class WeatherReportRead(TimestampedModel):
    city: str
    country: str
    temperature: float
    description: str
