import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict
from urllib.parse import urlsplit
from uuid import UUID

from fastapi import Request

from app.core.config.settings import Settings

if TYPE_CHECKING:
    from app.core.db.session import Database
    from app.core.process.lifecycle import ShutdownFlag
    from app.core.security.encryption import SecretBox
    from app.core.security.hashing import PasswordHasher
    from app.core.security.tokens import TokenSigner
    from app.core.storage.objects import ObjectStore
    from app.core.upstream.http_client import LazyHttpClient

# RFC 9110 §9.2.1
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Paths that monitoring systems request every few seconds.
PROBE_PATHS = re.compile(r"/health(/live|/ready)?\Z|/metrics\Z")
MAX_USER_AGENT_LENGTH = 200
FORM = "application/x-www-form-urlencoded"
# Values of Sec-Fetch-Site for requests that no page of another site caused. "none" means that the user started the
# request, for instance from a bookmark.
OWN_SITES = frozenset({"same-origin", "none"})


class State(TypedDict):
    """The type of `request.state`: resources that the lifespan has opened, and data of this request.

    At run time, `request.state` is Starlette's `State`, which has `[]` and `in`, but no `get`. A feature declares the
    keys that it adds in a subclass, such as `AccountsState` in `app/accounts/dependencies.py`.
    """

    settings: Settings
    database: "Database"
    passwords: "PasswordHasher"
    tokens: "TokenSigner"
    secret_box: "SecretBox"
    # Returns seconds since the epoch.
    clock: Callable[[], float]
    shutdown: "ShutdownFlag"
    http: "LazyHttpClient"
    # None if no storage is configured.
    store: "NotRequired[ObjectStore | None]"
    # Sources that features add to the Content-Security-Policy, by directive.
    content_security_policy: Mapping[str, Sequence[str]]
    # The account that makes the request, once a route has authenticated it.
    actor_id: NotRequired[UUID | None]


class AppRequest(Request[State]):
    """A request with typed state."""


@dataclass(frozen=True)
class ClientInfo:
    """The client of a request, as far as the service knows it."""

    ip_address: str | None = None
    user_agent: str = ""


def read_client_info(request: Request[Any]) -> ClientInfo:
    """Return the client; the User-Agent is truncated, without characters that control a terminal or forge log lines."""
    user_agent = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))[:MAX_USER_AGENT_LENGTH]
    # 45 characters hold any IP address: only the zone of an IPv6 address can be cut off.
    return ClientInfo(request.client.host[:45] if request.client else None, user_agent)


def comes_from_other_site(request: Request[Any], allowed_origins: Collection[str] = ()) -> bool:
    """Return whether a page of another site made a browser send this request, according to Origin and Sec-Fetch-Site.

    Clients other than browsers send neither header.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin in allowed_origins or "*" in allowed_origins:
        return False
    # Browsers send the origin `null` even from the service's own pages if a Referrer-Policy hides the real origin.
    if site is not None and (site not in OWN_SITES or origin == "null"):
        return site not in OWN_SITES
    return origin is not None and not _is_own_host(request, origin)


def _is_own_host(request: Request[Any], origin: str) -> bool:
    """Return whether the origin and the Host header name the same host; the origin `null` names no host.

    Ports are ignored, because proxies may omit the port from the Host header.
    """
    try:
        host = urlsplit(origin).hostname
        return host is not None and host == urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return False
