from typing import Annotated

from fastapi import Depends, Query, Request

from app.accounts.dependencies import CurrentUser
from app.core.database import SessionDep, commit_and_release
from app.weather.client import WeatherClient
from app.weather.schemas import Country, Part, Place, Units


async def get_client(request: Request, _user: CurrentUser, session: SessionDep) -> WeatherClient:
    """Require a signed-in user, then release the connection: the upstream call is slow and needs no database."""
    await commit_and_release(session)
    client: WeatherClient = request.state.weather
    return client


async def get_place(
    city: Part,
    state: Annotated[Part | None, Query(description="A state of the United States.")] = None,
    country: Annotated[Country | None, Query(description="Two letters (ISO 3166).")] = None,
    units: Units = Units.METRIC,
) -> Place:
    return Place(city=city, state=state, country=country, units=units)


WeatherClientDep = Annotated[WeatherClient, Depends(get_client)]
PlaceDep = Annotated[Place, Depends(get_place)]
