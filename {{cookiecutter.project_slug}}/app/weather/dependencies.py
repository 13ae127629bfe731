from typing import Annotated

from fastapi import Depends, Query, Request

from app.accounts.dependencies import CurrentUser
from app.core.database import SessionDep, commit_and_release
from app.weather import service
from app.weather.schemas import Country, Part, Place, Units
from app.weather.service import Weather


async def get_weather(request: Request, _user: CurrentUser, session: SessionDep) -> Weather:
    """For who is signed in, which the database was asked; it is not needed for what comes, and that may take long."""
    await commit_and_release(session)
    weather: Weather = getattr(request.state, service.STATE)
    return weather


async def get_place(
    city: Part,
    state: Annotated[Part | None, Query(description="Within the United States.")] = None,
    country: Annotated[Country | None, Query(description="Two letters (ISO 3166).")] = None,
    units: Units = Units.METRIC,
) -> Place:
    return Place(city=city, state=state, country=country, units=units)


WeatherDep = Annotated[Weather, Depends(get_weather)]
PlaceDep = Annotated[Place, Depends(get_place)]
