from typing import Annotated

from fastapi import Query

from app.accounts.dependencies import CurrentUser
from app.core.dependencies import SessionDep
from app.core.http.pagination import Page, PageDep, PageResult
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter
from app.core.http.schemas import NonEmptyLine
from app.weather import service
from app.weather.dependencies import PlaceDep, WeatherClientDep
from app.weather.models import ReportRecord
from app.weather.schemas import WeatherRead, WeatherReportCreate, WeatherReportRead

router = FeatureRouter(prefix="/weather", tags=["weather"])


@router.post("/reports", status_code=201, response_model=WeatherReportRead, responses=problem_responses(401, 403, 409))
async def create_weather_report(data: WeatherReportCreate, user: CurrentUser, session: SessionDep) -> ReportRecord:
    return await service.create_report(session, user.id, data)


@router.get("/reports", response_model=Page[WeatherReportRead], responses=problem_responses(401, 403))
async def list_weather_reports(
    _user: CurrentUser, session: SessionDep, page: PageDep, city: Annotated[NonEmptyLine | None, Query()] = None
) -> PageResult[ReportRecord]:
    """List the reports of all users, newest first."""
    return await service.list_reports(session, city=city, page=page)


@router.get("", responses=problem_responses(400, 401, 403, 404, 429, 502, 504))
async def read_weather(place: PlaceDep, user: CurrentUser, client: WeatherClientDep) -> WeatherRead:
    """Read the current weather of a place. `is_stale` marks an older response, sent while the weather service fails."""
    return await service.read_weather(client, place, user.id)
