from typing import Annotated

from fastapi import Depends, Query, Request

from app.accounts.dependencies import CurrentUser
from app.core.db.session import commit_and_release
from app.core.dependencies import SessionDep
from app.core.http.request import State
from app.weather.client import WeatherClient
from app.weather.schemas import Country, Part, Place, Units


class WeatherState(State):
    weather: WeatherClient


class WeatherRequest(Request[WeatherState]):
    """A request with the typed state of this feature."""


async def get_client(request: WeatherRequest, _user: CurrentUser, session: SessionDep) -> WeatherClient:
    """Require a signed-in user, then release the connection: the upstream call is slow and needs no database."""
    await commit_and_release(session)
    return request.state["weather"]


async def get_place(
    city: Part,
    state: Annotated[Part | None, Query(description="A state of the United States.")] = None,
    country: Annotated[Country | None, Query(description="Two letters (ISO 3166).")] = None,
    units: Units = Units.METRIC,
) -> Place:
    return Place(city=city, state=state, country=country, units=units)


WeatherClientDep = Annotated[WeatherClient, Depends(get_client)]
PlaceDep = Annotated[Place, Depends(get_place)]
