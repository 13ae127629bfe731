import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict
from urllib.parse import urlsplit
from uuid import UUID, uuid4

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

# RFC 9110 §9.2.1: they change nothing.
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Asked every few seconds by machines.
PROBE_PATHS = re.compile(r"/health(/live|/ready)?\Z|/metrics\Z")
CLIENT_PREFIX = "client-"
# With the prefix it fits into the 128 characters of an audit event.
REQUEST_ID = re.compile("[A-Za-z0-9._-]{8,121}")
MAX_USER_AGENT_LENGTH = 200
FORM = "application/x-www-form-urlencoded"
# Values of Sec-Fetch-Site; "none" is a person who repeats the request by hand.
OWN_SITES = frozenset({"same-origin", "none"})


class State(TypedDict):
    """What every request carries as `request.state`: the parts that the lifespan has opened, and notes on the request.

    At run time it is Starlette's `State`, which has `[]` and `in`, but no `get`. Features add keys of their own, and
    type them as `app/accounts/dependencies.py` does.
    """

    settings: Settings
    database: "Database"
    passwords: "PasswordHasher"
    tokens: "TokenSigner"
    secret_box: "SecretBox"
    shutdown: "ShutdownFlag"
    http: "LazyHttpClient"
    # None where neither a folder nor a bucket is configured.
    store: "NotRequired[ObjectStore | None]"
    # Sources that features add to the Content-Security-Policy of pages, by directive.
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
    """Truncate the User-Agent, and remove characters that would control a terminal or forge a line of a log."""
    user_agent = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))[:MAX_USER_AGENT_LENGTH]
    # 45 characters hold any address; the name of an IPv6 zone can be longer.
    return ClientInfo(request.client.host[:45] if request.client else None, user_agent)


def comes_from_other_site(request: Request[Any], allowed_origins: Collection[str] = ()) -> bool:
    """Tell whether a browser sends this for a page of another site; other clients send neither header."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin in allowed_origins or "*" in allowed_origins:
        return False
    # Browsers send `null` for our own pages, too, where nginx has set a policy without referrers.
    if site is not None and (site not in OWN_SITES or origin == "null"):
        return site not in OWN_SITES
    return origin is not None and not _is_own_host(request, origin)


def _is_own_host(request: Request[Any], origin: str) -> bool:
    """Compare hosts without their ports, which a proxy may not hand on; `null` is no host."""
    try:
        host = urlsplit(origin).hostname
        return host is not None and host == urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return False


def is_request_id(value: str) -> bool:
    return REQUEST_ID.fullmatch(value) is not None


def mark_request_id(chosen: str) -> str:
    """Return a new id, or the client's with a prefix: no client can pass its own off as one of ours."""
    return f"{CLIENT_PREFIX}{chosen}" if chosen else uuid4().hex
