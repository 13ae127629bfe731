from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, insert, select

from app.accounts.quotas import count_rows, require_quota
from app.core.config import Settings
from app.core.database import Database, Session
from app.core.http_client import LazyHttpClient
from app.core.pagination import PageRequest, PageResult, paginate
from app.core.query import Query, columns
from app.weather.cache import Answer, Cache
from app.weather.client import WeatherClient
from app.weather.models import ReportRecord, WeatherReport
from app.weather.schemas import Place, UpstreamWeather, WeatherRead, WeatherReportCreate
from app.weather.settings import WeatherSettings

# Under which the lifespan's state has the weather.
STATE = "weather"
NEWEST = "-created_at"

COLUMNS = columns(ReportRecord, WeatherReport)
ROWS = count_rows(select(WeatherReport.id).where(WeatherReport.owner_id == bindparam("owner")))
CREATE_REPORT = Query(insert(WeatherReport).returning(*COLUMNS), ReportRecord)


@dataclass(frozen=True)
class Weather:
    """The one client of the process, and what it was told."""

    client: WeatherClient
    answers: Cache[UpstreamWeather]


@asynccontextmanager
async def open_weather(
    settings: Settings, _database: Database, http: LazyHttpClient
) -> AsyncIterator[Mapping[str, object]]:
    own = settings.of(WeatherSettings)
    answers = Cache[UpstreamWeather](own.weather_cache_seconds, own.weather_stale_seconds, own.weather_cache_size)
    try:
        yield {STATE: Weather(WeatherClient(own, http), answers)}
    finally:
        await answers.close()


async def read_weather(weather: Weather, place: Place) -> WeatherRead:
    answer = await weather.answers.get(place.key, lambda: weather.client.fetch(place))
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


async def create_report(session: Session, owner_id: UUID, data: WeatherReportCreate) -> ReportRecord:
    await require_quota(session, ROWS, owner_id)
    return await session.fetch_one(CREATE_REPORT, owner_id=owner_id, **data.model_dump())


async def list_reports(session: Session, *, city: str | None, page: PageRequest) -> PageResult[ReportRecord]:
    query = _list_query(filtered=city is not None, after_cursor=page.cursor is not None)
    filters = {} if city is None else {"of_city": city}
    return page.build(await session.fetch_all(query, **filters, **page.parameters(NEWEST)), NEWEST)


@cache
def _list_query(*, filtered: bool, after_cursor: bool) -> Query[ReportRecord]:
    statement: Select[*tuple[Any, ...]] = select(*COLUMNS)
    if filtered:
        statement = statement.where(WeatherReport.city == bindparam("of_city"))
    return paginate(statement, ReportRecord, WeatherReport, descending=True, after_cursor=after_cursor)
