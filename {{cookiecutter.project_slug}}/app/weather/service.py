from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Row, Select, bindparam, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.config import Settings
from app.core.database import Database
from app.core.pagination import PageRequest, Slice, paginate
from app.core.statements import prepare
from app.weather.cache import Answer, Cache
from app.weather.client import WeatherClient, open_client
from app.weather.models import WeatherReport
from app.weather.schemas import Place, UpstreamWeather, WeatherRead, WeatherReportCreate
from app.weather.settings import WeatherSettings

ReportRow: TypeAlias = Row[*tuple[Any, ...]]

# Under which the lifespan's state has the weather.
STATE = "weather"
NEWEST = "-created_at"

REPORT_COLUMNS = (
    WeatherReport.id,
    WeatherReport.city,
    WeatherReport.country,
    WeatherReport.temperature,
    WeatherReport.description,
    WeatherReport.created_at,
    WeatherReport.updated_at,
)
CREATE_REPORT = prepare(insert(WeatherReport).returning(*REPORT_COLUMNS))


@dataclass(frozen=True)
class Weather:
    """The one client of the process, and what it was told."""

    client: WeatherClient
    answers: Cache[UpstreamWeather]


@asynccontextmanager
async def open_weather(settings: Settings, _database: Database) -> AsyncIterator[Mapping[str, object]]:
    own = settings.of(WeatherSettings)
    answers = Cache[UpstreamWeather](own.weather_cache_seconds, own.weather_stale_seconds, own.weather_cache_size)
    async with open_client(own) as client:
        try:
            yield {STATE: Weather(client, answers)}
        finally:
            await answers.close()


async def read_weather(weather: Weather, place: Place) -> WeatherRead:
    answer = await weather.answers.get((place.query, place.units), lambda: weather.client.fetch(place))
    return _to_read(answer, place)


def _to_read(answer: Answer[UpstreamWeather], place: Place) -> WeatherRead:
    told = answer.value
    return WeatherRead(
        city=told.name,
        country=told.sys.country,
        description=told.weather[0].description,
        temperature=told.main.temp,
        feels_like=told.main.feels_like,
        humidity=told.main.humidity,
        pressure=told.main.pressure,
        wind_speed=told.wind.speed,
        units=place.units,
        observed_at=told.dt,
        is_stale=answer.is_stale,
    )


async def create_report(session: AsyncSession, owner_id: UUID, data: WeatherReportCreate) -> ReportRow:
    return (await session.execute(CREATE_REPORT, {"owner_id": owner_id, **data.model_dump()})).one()


async def list_reports(session: AsyncSession, *, city: str | None, page: PageRequest) -> Slice:
    statement = _list_statement(filtered=city is not None, continued=page.cursor is not None)
    parameters = {"of_city": city, **page.parameters(NEWEST)}
    return page.cut((await session.execute(statement, parameters)).all(), NEWEST)


@cache
def _list_statement(*, filtered: bool, continued: bool) -> Select[*tuple[Any, ...]]:
    statement: Select[*tuple[Any, ...]] = select(*REPORT_COLUMNS)
    if filtered:
        statement = statement.where(WeatherReport.city == bindparam("of_city"))
    return paginate(statement, WeatherReport, descending=True, continued=continued)
