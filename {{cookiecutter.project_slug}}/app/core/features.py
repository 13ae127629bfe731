from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from fastapi import APIRouter
from starlette.middleware import Middleware

from app.core.config import FeatureSettings, Settings
from app.core.database import Database
from app.core.email import Renderer
from app.core.housekeeping import Purge
from app.core.http_client import LazyHttpClient
from app.core.toolbox import Toolbox

# Lasts as long as the service runs; what it yields is added to the `request.state` of every request.
Lifespan = Callable[[Settings, Database, LazyHttpClient], AbstractAsyncContextManager[Mapping[str, object]]]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """What a feature adds to the service; `app/api.py` lists them all."""

    # Under API_PREFIX.
    api: APIRouter | None = None
    # At the root.
    root: APIRouter | None = None
    # What nobody needs any more; it runs now and then.
    purge: Purge | None = None
    # Settings of its own.
    settings: type[FeatureSettings] | None = None
    lifespan: Lifespan | None = None
    # Around everything that answers a request, the access log and the metrics excepted.
    middleware: Sequence[Middleware] = ()
    load_sample_data: Callable[[Toolbox], Awaitable[None]] | None = None
    # What makes each kind of message that this feature enqueues (app/outbox); a later feature's takes the place.
    emails: Mapping[str, Renderer] = field(default_factory=dict)
