from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, TypedDict

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Lifespan
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.api import FEATURES
from app.core.audit import handle_refusal
from app.core.config import Settings, load_settings_or_exit
from app.core.database import Database, open_database
from app.core.email import Renderer
from app.core.exceptions import (
    EXCEPTION_HANDLERS,
    AppError,
    PlainErrorMiddleware,
    PlainStartupMiddleware,
    UnhandledErrorMiddleware,
    problem_responses,
)
from app.core.features import Feature, settings_of
from app.core.housekeeping import keep_house
from app.core.lifecycle import Stopping, mark_start, watch_for_stop
from app.core.logging import AccessLogMiddleware, configure_logging
from app.core.metrics import MetricsMiddleware
from app.core.openapi import add_docs, customize_openapi
from app.core.overload import OverloadMiddleware
from app.core.project import read_project
from app.core.protocol import BodyLimitMiddleware, HeadMiddleware, RequestCheckMiddleware, redirect_slashes
from app.core.requests import HostMiddleware, is_request_id, mark_request_id
from app.core.security import Security
from app.core.server import trusted_proxies
from app.core.upstream.http_client import LazyHttpClient, open_http_client
from app.outbox.sender import run_sender

if TYPE_CHECKING:
    from httpx2 import AsyncBaseTransport


class State(TypedDict):
    """What the lifespan gives to every request, as `request.state`; features may add to it."""

    settings: Settings
    database: Database
    security: Security
    stopping: Stopping
    http: LazyHttpClient
    # What features add to the Content-Security-Policy of pages: sources by directive.
    content_security_policy: Mapping[str, Sequence[str]]


def create_app(
    settings: Settings | None = None,
    database: Database | None = None,
    http_transport: "AsyncBaseTransport | None" = None,
    features: Sequence[Feature] = FEATURES,
) -> FastAPI:
    """Build the service, from the environment unless settings are given.

    Tests pass their database, their features, and the transport of a fake for calls to other services.
    """
    mark_start()
    if settings is None:
        settings = load_settings_or_exit(settings_of(features))
        configure_logging(settings)
    project = read_project()
    app = FastAPI(
        title=project.title,
        version=project.version,
        description=project.description,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.serves_docs else None,
        generate_unique_id_function=_operation_id,
        exception_handlers={**EXCEPTION_HANDLERS, AppError: handle_refusal},
        middleware=_middleware(settings, features),
        lifespan=_create_lifespan(settings, database, http_transport, features),
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    _include_features(app, settings, features)
    app.router.redirect_slashes = False
    app.router.default = redirect_slashes(app.router)
    customize_openapi(app, settings.api_prefix)
    if settings.serves_docs:
        add_docs(app)
    return app


def _create_lifespan(
    settings: Settings,
    database: Database | None,
    http_transport: "AsyncBaseTransport | None",
    features: Sequence[Feature],
) -> Lifespan[FastAPI]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, object]]:
        security = Security(settings, issuer=read_project().name)
        if settings.reset_db or settings.update_db:
            # Not above: with its imports, it is for who does both at once.
            from app.startup import prepare_database

            await prepare_database(settings, security, features)
        async with AsyncExitStack() as stack:
            opened = database
            if opened is None:
                opened = await stack.enter_async_context(open_database(settings))
                if settings.sends_mail:
                    await stack.enter_async_context(run_sender(settings, opened, email_renderers(features)))
            purges = [feature.purge for feature in features if feature.purge]
            await stack.enter_async_context(keep_house(opened, settings, purges))
            # One connection for each concurrent request: a slow service that one feature calls starves no other.
            http = await stack.enter_async_context(open_http_client(settings.max_concurrent_requests, http_transport))
            stopping = stack.enter_context(watch_for_stop())
            state = State(
                settings=settings,
                database=opened,
                security=security,
                stopping=stopping,
                http=http,
                content_security_policy=_merge_policies(features),
            )
            yield await _enter_features(stack, features, state)

    return lifespan


async def _enter_features(stack: AsyncExitStack, features: Iterable[Feature], state: State) -> dict[str, object]:
    """Raises ValueError where two features give the same key to the state of requests."""
    entered: dict[str, object] = {**state}
    for feature in features:
        if feature.lifespan is None:
            continue
        lifespan = feature.lifespan(state["settings"], state["database"], state["http"])
        added = await stack.enter_async_context(lifespan)
        if repeated := entered.keys() & added.keys():
            raise ValueError(f"The state of requests already has {', '.join(sorted(repeated))}: use another key.")
        entered.update(added)
    return entered


def _merge_policies(features: Iterable[Feature]) -> dict[str, list[str]]:
    merged: dict[str, list[str]] = {}
    for feature in features:
        for directive, sources in feature.content_security_policy.items():
            merged.setdefault(directive, []).extend(sources)
    return merged


def email_renderers(features: Iterable[Feature] = FEATURES) -> dict[str, Renderer]:
    return {kind: renderer for feature in features for kind, renderer in feature.emails.items()}


def _middleware(settings: Settings, features: Sequence[Feature]) -> list[Middleware]:
    """The outermost first."""
    middleware = [Middleware(PlainStartupMiddleware)]
    if settings.worker_class == "asgi":
        # Alone among the workers it leaves the client's address to the application.
        middleware.append(Middleware(ProxyHeadersMiddleware, trusted_hosts=trusted_proxies(settings)))
    middleware += [
        Middleware(
            CorrelationIdMiddleware,
            validator=is_request_id,
            # Return no id: `mark_request_id` makes one, and marks those that a client sent.
            generator=str,
            transformer=mark_request_id,
            # Nobody reads it there.
            update_request_header=False,
        ),
        Middleware(MetricsMiddleware),
    ]
    if settings.access_log:
        middleware.append(Middleware(AccessLogMiddleware))
    # Further in, nothing knows of HEAD: what turns errors into pages needs their bodies.
    middleware.append(Middleware(HeadMiddleware))
    middleware += [each for feature in features for each in feature.middleware]
    middleware.append(Middleware(PlainErrorMiddleware))
    if settings.cors_origins:
        middleware.append(_cors_middleware(settings, features))
    return [
        *middleware,
        Middleware(OverloadMiddleware, limit=settings.max_concurrent_requests),
        Middleware(HostMiddleware, allowed_hosts=settings.allowed_hosts, www_redirect=False),
        Middleware(UnhandledErrorMiddleware),
        Middleware(BodyLimitMiddleware, max_body_size=settings.max_body_bytes),
        Middleware(RequestCheckMiddleware),
    ]


def _cors_middleware(settings: Settings, features: Sequence[Feature]) -> Middleware:
    allowed = [header for feature in features for header in feature.cors_allow_headers]
    exposed = [header for feature in features for header in feature.cors_expose_headers]
    return Middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_credentials=settings.cors_allow_credentials,
        allow_methods=["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"],
        allow_headers=[
            "Authorization",
            "Content-Type",
            "If-Match",
            "If-None-Match",
            "X-Confirmation",
            "X-Request-ID",
            *allowed,
        ],
        expose_headers=["ETag", "Location", "Retry-After", "X-Request-ID", *exposed],
    )


def _include_features(app: FastAPI, settings: Settings, features: Sequence[Feature]) -> None:
    # Each by itself: every router around another one looks for the route once more.
    for feature in features:
        for router in feature.api_routers:
            app.include_router(
                router,
                prefix=settings.api_prefix,
                responses=problem_responses(413, 415, 422, 503),
            )
    for feature in features:
        if feature.root is not None:
            app.include_router(feature.root)


def _operation_id(route: APIRoute) -> str:
    return route.name
