import pytest
from fastapi import APIRouter, FastAPI
from starlette.routing import Match
from starlette.types import Scope

from app.api import FEATURES
from app.core.routing import FeatureRoute, FeatureRouter
from tests.clients import open_client


def make_app(compared: list[str]) -> FastAPI:
    class NotingRoute(FeatureRoute):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            compared.append(self.path)
            return super().matches(scope)

    app = FastAPI()
    for name in ("apples", "pears"):
        router = FeatureRouter(prefix=f"/{name}", route_class=NotingRoute)
        router.add_api_route("/{number}", lambda number: number)
        app.include_router(router, prefix="/api")
    return app


async def test_the_routes_of_another_feature_are_not_even_looked_at() -> None:
    compared: list[str] = []
    async with open_client(make_app(compared)) as client:
        found = await client.get("/api/pears/1")
        missing = await client.get("/api/plums/1")

    assert (found.status_code, missing.status_code) == (200, 404)
    assert set(compared) == {"/pears/{number}"}


@pytest.mark.parametrize("router", [feature.api for feature in FEATURES if feature.api], ids=lambda each: each.prefix)
def test_every_feature_of_the_api_has_a_prefix_to_be_skipped_by(router: APIRouter) -> None:
    assert isinstance(router, FeatureRouter), "make it of app.core.routing.FeatureRouter"
    assert router.prefix, "give its FeatureRouter a prefix"
