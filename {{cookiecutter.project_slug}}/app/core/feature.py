from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.middleware import Middleware

from app.core.config.base import FeatureSettings
from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.purge import Purge
from app.core.db.session import Database
from app.core.email.message import Renderer
from app.core.upstream.http_client import LazyHttpClient

# Entered when a worker starts and exited when it stops; the yielded mapping is added to every `request.state`.
Lifespan = Callable[[Settings, Database, LazyHttpClient], AbstractAsyncContextManager[Mapping[str, object]]]

ExceptionHandler = Callable[[Request, Any], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """The parts that a feature adds to the service; `app/features.py` lists all features."""

    # One or more routers below API_PREFIX.
    api: APIRouter | Sequence[APIRouter] = ()
    # One or more routers outside of API_PREFIX, such as for web pages.
    root: APIRouter | Sequence[APIRouter] = ()
    # The feature's own settings, read from the same sources as all others.
    settings: type[FeatureSettings] | None = None
    # Resources that live as long as the worker, such as a client of another service or a background task. A task must
    # open its own sessions from the database, handle its own errors, and be cancelled when the worker stops:
    #
    #     task = asyncio.create_task(refresh_prices(database))
    #     try:
    #         yield {}
    #     finally:
    #         task.cancel()
    #         await asyncio.gather(task, return_exceptions=True)
    lifespan: Lifespan | None = None
    # Middleware for all requests, refused ones included. Metrics, access log and HEAD handling wrap this middleware.
    middleware: Sequence[Middleware] = ()
    # Request headers that pages of CORS_ORIGINS may send, besides those in `app/application.py`.
    cors_allow_headers: Sequence[str] = ()
    # Response headers that pages of CORS_ORIGINS may read, besides those in `app/application.py`.
    cors_expose_headers: Sequence[str] = ()
    # Sources that pages may load from, by directive of the Content-Security-Policy, besides those of every page:
    # {"img-src": ("https://images.example.com",)}.
    content_security_policy: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # Handlers by exception class, for exceptions whose response is not a problem document.
    exception_handlers: Mapping[type[Exception], ExceptionHandler] = field(default_factory=dict)
    # A function that deletes expired rows, called periodically by each worker.
    purge: Purge | None = None
    # E-mail renderers by kind of message; those of a later feature override those of an earlier one.
    emails: Mapping[str, Renderer] = field(default_factory=dict)
    # The import path of a Typer app, such as "app.accounts.commands:commands". A path, because the server must not
    # import Typer.
    commands: str | None = None
    # A function that adds sample data after a reset of the database. The features' functions run in the order of
    # `app/features.py`.
    load_sample_data: Callable[[Context], Awaitable[None]] | None = None

    @property
    def api_routers(self) -> Sequence[APIRouter]:
        return _as_sequence(self.api)

    @property
    def root_routers(self) -> Sequence[APIRouter]:
        return _as_sequence(self.root)


def _as_sequence(routers: APIRouter | Sequence[APIRouter]) -> Sequence[APIRouter]:
    return (routers,) if isinstance(routers, APIRouter) else routers


def settings_of(features: Iterable[Feature]) -> tuple[type[FeatureSettings], ...]:
    return tuple(feature.settings for feature in features if feature.settings is not None)
