import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit
from uuid import uuid4

from fastapi import Depends, Request
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import Message, Receive, Scope, Send

from app.core.config.settings import Settings

# Asked every few seconds by machines.
PROBE_PATHS = re.compile(r"/health(/live|/ready)?\Z|/metrics\Z")
CLIENT_PREFIX = "client-"
# With the prefix it fits into the 128 characters of an audit event.
REQUEST_ID = re.compile("[A-Za-z0-9._-]{8,121}")
MAX_DEVICE_LENGTH = 200
FORM = "application/x-www-form-urlencoded"
# Values of Sec-Fetch-Site; "none" is a person who repeats the request by hand.
OWN_SITES = frozenset({"same-origin", "none"})


async def get_settings(request: Request) -> Settings:
    settings: Settings = request.state.settings
    return settings


SettingsDep = Annotated[Settings, Depends(get_settings)]


@dataclass(frozen=True)
class Origin:
    """Where an act comes from."""

    address: str | None = None
    device: str = ""


async def get_origin(request: Request) -> Origin:
    """What the client says of itself is cut, and rid of what would write into a terminal or a log."""
    device = "".join(filter(str.isprintable, request.headers.get("user-agent", "")))[:MAX_DEVICE_LENGTH]
    # 45 characters hold any address; a zone's name can be longer.
    return Origin(request.client.host[:45] if request.client else None, device)


OriginDep = Annotated[Origin, Depends(get_origin)]


def comes_from_other_site(request: Request, allowed_origins: Collection[str] = ()) -> bool:
    """Tell whether a browser sends this for a page of another site; other clients send neither header."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if origin in allowed_origins or "*" in allowed_origins:
        return False
    # Browsers send `null` for our own pages, too, where nginx has set a policy without referrers.
    if site is not None and (site not in OWN_SITES or origin == "null"):
        return site not in OWN_SITES
    return origin is not None and not _is_own_host(request, origin)


def _is_own_host(request: Request, origin: str) -> bool:
    """Compare hosts without their ports, which a proxy may not hand on; `null` is no host."""
    try:
        host = urlsplit(origin).hostname
        return host is not None and host == urlsplit(f"//{request.headers.get('host', '')}").hostname
    except ValueError:
        return False


class AnswerWatch:
    """Passes on what is sent to a client, and remembers the status."""

    # None until the answer has begun.
    status: int | None = None

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


class HostMiddleware(TrustedHostMiddleware):
    """Probes come by whatever address the platform knows, and their answers hold no link."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and PROBE_PATHS.match(scope["path"]):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def is_request_id(value: str) -> bool:
    return REQUEST_ID.fullmatch(value) is not None


def mark_request_id(chosen: str) -> str:
    """Return a new id, or the client's with a prefix: no client can pass its own off as one of ours."""
    return f"{CLIENT_PREFIX}{chosen}" if chosen else uuid4().hex
