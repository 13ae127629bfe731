import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Lifespan
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.core.audit.log import record_refusals
from app.core.config.load import load_settings_or_exit
from app.core.config.settings import Settings
from app.core.db.purge import purge_periodically
from app.core.db.session import Database, open_database
from app.core.email.message import Renderer
from app.core.errors import AppError
from app.core.feature import Feature, settings_of
from app.core.http.middleware.access_log import AccessLogMiddleware
from app.core.http.middleware.body_limit import BodyLimitMiddleware
from app.core.http.middleware.concurrency_limit import ConcurrencyLimitMiddleware
from app.core.http.middleware.head import HeadMiddleware
from app.core.http.middleware.internal_error import InternalErrorMiddleware
from app.core.http.middleware.metrics import MetricsMiddleware
from app.core.http.middleware.problems import ProblemDetailsMiddleware
from app.core.http.middleware.request_check import RequestCheckMiddleware
from app.core.http.middleware.request_id import request_id_middleware
from app.core.http.middleware.startup_error import StartupErrorMiddleware
from app.core.http.middleware.trusted_host import ProbeFriendlyHostMiddleware
from app.core.http.openapi import add_docs, customize_openapi
from app.core.http.paths import redirect_slashes
from app.core.http.problems import EXCEPTION_HANDLERS, problem_responses
from app.core.http.request import State
from app.core.observability.logging import configure_logging
from app.core.process.lifecycle import record_start_time, track_shutdown_signals
from app.core.process.sockets import trusted_proxies
from app.core.project import read_project
from app.core.security.encryption import SecretBox
from app.core.security.hashing import PasswordHasher
from app.core.security.tokens import TokenSigner
from app.core.upstream.http_client import open_http_client
from app.features import FEATURES
from app.outbox.sender import run_sender

if TYPE_CHECKING:
    from httpx2 import AsyncBaseTransport


def create_app(
    settings: Settings | None = None,
    database: Database | None = None,
    http_transport: "AsyncBaseTransport | None" = None,
    features: Sequence[Feature] = FEATURES,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """Create the application; by default, the settings are loaded from the environment.

    Tests pass a database, features, a fake transport for requests to other services, and a clock for `Context.clock`.
    """
    record_start_time()
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
        exception_handlers=_exception_handlers(features),
        middleware=_middleware(settings, features),
        lifespan=_create_lifespan(settings, database, http_transport, features, clock),
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
    clock: Callable[[], float],
) -> Lifespan[FastAPI]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, object]]:
        if settings.reset_db or settings.update_db:
            # Imported lazily: only UPDATE_DB and RESET_DB need Alembic.
            from app.startup import prepare_database

            await prepare_database(settings, features)
        async with AsyncExitStack() as stack:
            opened = database
            if opened is None:
                opened = await stack.enter_async_context(open_database(settings))
                if settings.sends_mail:
                    await stack.enter_async_context(run_sender(settings, opened, email_renderers(features)))
            purges = [feature.purge for feature in features if feature.purge]
            await stack.enter_async_context(purge_periodically(opened, settings, purges))
            # As many connections as concurrent requests, so that a slow upstream service cannot starve other features.
            http = await stack.enter_async_context(open_http_client(settings.max_concurrent_requests, http_transport))
            shutdown = stack.enter_context(track_shutdown_signals())
            state = State(
                settings=settings,
                database=opened,
                passwords=PasswordHasher(settings),
                tokens=TokenSigner(settings),
                secret_box=SecretBox(settings),
                clock=clock,
                shutdown=shutdown,
                http=http,
                content_security_policy=_merge_policies(features),
            )
            yield await _enter_features(stack, features, state)

    return lifespan


def _exception_handlers(features: Iterable[Feature]) -> dict[Any, Any]:
    handlers: dict[Any, Any] = {**EXCEPTION_HANDLERS}
    for feature in features:
        handlers |= feature.exception_handlers
    return {
        kind: record_refusals(handler) if issubclass(kind, AppError) else handler for kind, handler in handlers.items()
    }


async def _enter_features(stack: AsyncExitStack, features: Iterable[Feature], state: State) -> dict[str, object]:
    """Enter the lifespans of the features; raises ValueError if two of them add the same key to the state."""
    entered: dict[str, object] = {**state}
    for feature in features:
        if feature.lifespan is None:
            continue
        lifespan = feature.lifespan(state["settings"], state["database"], state["http"])
        added = await stack.enter_async_context(lifespan)
        if repeated := entered.keys() & added.keys():
            raise ValueError(
                f"The state of requests already has the keys {', '.join(sorted(repeated))}: rename them in the"
                " lifespan of one feature."
            )
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
    """Return the middleware, the outermost first."""
    middleware = [Middleware(StartupErrorMiddleware)]
    if settings.worker_class == "asgi":
        # With any other worker class, uvicorn handles the forwarded headers.
        middleware.append(Middleware(ProxyHeadersMiddleware, trusted_hosts=trusted_proxies(settings)))
    middleware += [request_id_middleware(), Middleware(MetricsMiddleware)]
    if settings.access_log:
        middleware.append(Middleware(AccessLogMiddleware))
    # HeadMiddleware must be outside of the features' middleware, which may need the body of an error response.
    middleware.append(Middleware(HeadMiddleware))
    middleware += [each for feature in features for each in feature.middleware]
    middleware.append(Middleware(ProblemDetailsMiddleware))
    if settings.cors_origins:
        middleware.append(_cors_middleware(settings, features))
    return [
        *middleware,
        Middleware(ConcurrencyLimitMiddleware, limit=settings.max_concurrent_requests),
        Middleware(ProbeFriendlyHostMiddleware, allowed_hosts=settings.allowed_hosts, www_redirect=False),
        Middleware(InternalErrorMiddleware),
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
    # Include each router in the app itself: every level of nested routers repeats the search for the route.
    outside = [router for feature in features for router in feature.root_routers]
    # Routers with a prefix come first: other requests skip them, and probes of /health find their route at once.
    for router in outside:
        if router.prefix:
            app.include_router(router)
    for feature in features:
        for router in feature.api_routers:
            app.include_router(
                router,
                prefix=settings.api_prefix,
                responses=problem_responses(413, 415, 422, 503),
            )
    for router in outside:
        if not router.prefix:
            app.include_router(router)


def _operation_id(route: APIRoute) -> str:
    return route.name
