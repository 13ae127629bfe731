import pytest
from fastapi import APIRouter, FastAPI
from starlette.routing import Match
from starlette.types import Scope

from app.core.http.routing import FeatureRoute, FeatureRouter
from app.features import FEATURES
from tests.support.clients import open_client


def make_noting_route(compared: list[str]) -> type[FeatureRoute]:
    class NotingRoute(FeatureRoute):
        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            compared.append(self.path)
            return super().matches(scope)

    return NotingRoute


def make_app(compared: list[str]) -> FastAPI:
    app = FastAPI()
    for name in ("apples", "pears"):
        router = FeatureRouter(prefix=f"/{name}", route_class=make_noting_route(compared))
        router.add_api_route("/{number}", lambda number: number)
        app.include_router(router, prefix="/api")
    return app


async def test_routes_of_other_features_are_not_compared() -> None:
    compared: list[str] = []
    async with open_client(make_app(compared)) as client:
        found = await client.get("/api/pears/1")
        missing = await client.get("/api/plums/1")

    assert (found.status_code, missing.status_code) == (200, 404)
    assert set(compared) == {"/pears/{number}"}


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("/projects/{project_id}/expenses", "/api/projects/7/expenses/1"),
        ("/projects/{project_id}/expenses/{expense_id}/notes", "/api/projects/7/expenses/8/notes/1"),
        ("/projects/{project_id:int}", "/api/projects/7/1"),
        ("/{tenant}/projects", "/api/ours/projects/1"),
        ("/{tenant}", "/api/ours/1"),
    ],
)
async def test_a_prefix_may_have_parameters(prefix: str, path: str) -> None:
    router = FeatureRouter(prefix=prefix)
    router.add_api_route("/{number}", lambda number: number)
    app = FastAPI()
    app.include_router(router, prefix="/api")

    async with open_client(app) as client:
        found = await client.get(path)
        missing = await client.get("/api/plums")

    assert (found.status_code, found.json()) == (200, "1")
    assert missing.status_code == 404


async def test_routes_are_skipped_by_static_start_of_prefix_with_parameters() -> None:
    compared: list[str] = []
    app = FastAPI()
    router = FeatureRouter(prefix="/projects/{project_id}/expenses", route_class=make_noting_route(compared))
    router.add_api_route("/{number}", lambda number: number)
    app.include_router(router, prefix="/api")

    async with open_client(app) as client:
        await client.get("/api/plums/7/expenses/1")
        skipped = list(compared)
        await client.get("/api/projects/7/expenses/1")

    assert skipped == []
    assert set(compared) == {"/projects/{project_id}/expenses/{number}"}


ROUTERS = [router for feature in FEATURES for router in feature.api_routers]


@pytest.mark.parametrize("router", ROUTERS, ids=lambda each: each.prefix)
def test_every_api_router_is_feature_router_with_prefix(router: APIRouter) -> None:
    assert isinstance(router, FeatureRouter), "make it of app.core.http.routing.FeatureRouter"
    assert router.prefix, "give its FeatureRouter a prefix"
