from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from fastapi import APIRouter
from starlette.middleware import Middleware

from app.core.config import FeatureSettings, Settings
from app.core.database import Database
from app.core.email import Renderer
from app.core.housekeeping import Purge
from app.core.toolbox import Toolbox
from app.core.upstream.http_client import LazyHttpClient

# Entered in each worker at its start and left at its stop; the mapping it yields is added to every `request.state`.
Lifespan = Callable[[Settings, Database, LazyHttpClient], AbstractAsyncContextManager[Mapping[str, object]]]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What a feature adds to the service; `app/api.py` lists all features."""

    # Routes under API_PREFIX: a router, or several.
    api: APIRouter | Sequence[APIRouter] = ()
    # Routes at the root.
    root: APIRouter | None = None
    # Settings that only this feature reads, from the same sources as all others.
    settings: type[FeatureSettings] | None = None
    # Resources that live as long as the worker, such as a client of another service or a background task. A task opens
    # its own sessions from the database, handles its own errors, and is cancelled at stop:
    #
    #     task = asyncio.create_task(refresh_prices(database))
    #     try:
    #         yield {}
    #     finally:
    #         task.cancel()
    #         await asyncio.gather(task, return_exceptions=True)
    lifespan: Lifespan | None = None
    # Middleware around every response; only the access log, the metrics and the answers to
    # HEAD are further out.
    middleware: Sequence[Middleware] = ()
    # Request headers that pages of CORS_ORIGINS may send, besides those in `app/application.py`.
    cors_allow_headers: Sequence[str] = ()
    # Response headers that pages of CORS_ORIGINS may read, besides those in `app/application.py`.
    cors_expose_headers: Sequence[str] = ()
    # Sources that pages may load from, by directive of the Content-Security-Policy, besides those of every page:
    # {"img-src": ("https://images.example.com",)}.
    content_security_policy: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # A function that deletes expired rows, called periodically by each worker.
    purge: Purge | None = None
    # A function for each kind of message that this feature enqueues; a later feature's replaces an earlier one's.
    emails: Mapping[str, Renderer] = field(default_factory=dict)
    # Where its Typer app is, such as "app.accounts.commands:commands"; a string, as the server must not import Typer.
    commands: str | None = None
    # A function that adds sample data after a reset, in the order of `app/api.py`.
    load_sample_data: Callable[[Toolbox], Awaitable[None]] | None = None

    @property
    def api_routers(self) -> Sequence[APIRouter]:
        return (self.api,) if isinstance(self.api, APIRouter) else self.api


def settings_of(features: Iterable[Feature]) -> tuple[type[FeatureSettings], ...]:
    return tuple(feature.settings for feature in features if feature.settings is not None)
