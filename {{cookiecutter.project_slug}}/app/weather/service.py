from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, insert, select

from app.accounts.quotas import count_rows, require_quota
from app.core.db.query import Query, columns
from app.core.db.session import Session
from app.core.http.pagination import PageRequest, PageResult, paginate
from app.weather.client import WeatherClient
from app.weather.models import ReportRecord, WeatherReport
from app.weather.schemas import Place, WeatherRead, WeatherReportCreate

NEWEST = "-created_at"

COLUMNS = columns(ReportRecord, WeatherReport)
ROWS = count_rows(select(WeatherReport.id).where(WeatherReport.owner_id == bindparam("owner")))
CREATE_REPORT = Query(insert(WeatherReport).returning(*COLUMNS), ReportRecord)


async def read_weather(client: WeatherClient, place: Place, account_id: UUID) -> WeatherRead:
    cached = await client.read(place, account_id)
    return WeatherRead(**cached.value.model_dump(), units=place.units, is_stale=cached.is_stale)


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
