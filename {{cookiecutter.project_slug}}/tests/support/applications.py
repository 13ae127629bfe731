"""Applications that share their routes, because FastAPI needs longer to prepare routes than most tests take."""

import time
from collections.abc import Callable, Sequence
from functools import cache

from fastapi import FastAPI
from httpx2 import AsyncBaseTransport
from starlette.routing import Route

from app import application
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.feature import Feature
from app.features import FEATURES
from tests.support.databases import make_settings, unreachable_url


def create_app(
    settings: Settings,
    database: Database | None = None,
    http_transport: AsyncBaseTransport | None = None,
    features: Sequence[Feature] = FEATURES,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """Create the application with its own settings, middleware and lifespan.

    All applications with the default features share their routers and their dependency overrides.
    """
    app = application.create_app(settings, database, http_transport, features, clock)
    if features is FEATURES:
        shared = _create_shared_app(settings.api_prefix)
        routers = (route for route in shared.router.routes if not isinstance(route, Route))
        # The routes of the documentation are not shared: they return the OpenAPI document of one application.
        app.router.routes = [route if isinstance(route, Route) else next(routers) for route in app.router.routes]
        app.dependency_overrides = shared.dependency_overrides
    return app


@cache
def _create_shared_app(api_prefix: str) -> FastAPI:
    return application.create_app(make_settings(unreachable_url(), api_prefix=api_prefix))
