from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import AliasPath, AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

from app.core.http.schemas import MultiLine, NonEmptyLine, RequestModel, ResponseModel, TimestampedModel

# OpenWeatherMap separates the parts of a place with commas.
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
        """The place for the weather service, as it was typed: lower case would change letters such as İ."""
        return ",".join(part for part in (self.city, self.state, self.country) if part)

    @property
    def key(self) -> tuple[str, Units]:
        """The cache key; places are case-insensitive."""
        return self.query.lower(), self.units


class UpstreamWeather(BaseModel):
    """The fields of OpenWeatherMap's "current weather" that are used."""

    # An error must not quote the response, which may repeat the API key.
    model_config = ConfigDict(hide_input_in_errors=True)

    city: str = Field(validation_alias="name", max_length=500)
    country: str | None = Field(default=None, validation_alias=AliasPath("sys", "country"), max_length=10)
    description: str = Field(validation_alias=AliasPath("weather", 0, "description"), max_length=500)
    temperature: FiniteFloat = Field(validation_alias=AliasPath("main", "temp"))
    feels_like: FiniteFloat = Field(validation_alias=AliasPath("main", "feels_like"))
    humidity: FiniteFloat = Field(validation_alias=AliasPath("main", "humidity"))
    pressure: FiniteFloat = Field(validation_alias=AliasPath("main", "pressure"))
    wind_speed: FiniteFloat = Field(validation_alias=AliasPath("wind", "speed"))
    observed_at: AwareDatetime = Field(validation_alias="dt")


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
    is_stale: bool = Field(
        description="True if the weather service fails: the values then come from an older response."
    )


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
