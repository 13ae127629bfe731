import re
from uuid import uuid4

from asgi_correlation_id import CorrelationIdMiddleware
from starlette.middleware import Middleware

CLIENT_PREFIX = "client-"
# At most 128 characters together with CLIENT_PREFIX: the length of the column `request_id` of audit_events.
REQUEST_ID = re.compile("[A-Za-z0-9._-]{8,121}")


def request_id_middleware() -> Middleware:
    """Return the middleware that gives each request an id, for X-Request-ID, the log and the audit log."""
    return Middleware(
        CorrelationIdMiddleware,
        validator=_is_request_id,
        # Without a valid id from the client, `str` returns an empty one, and `_mark_request_id` generates an id.
        generator=str,
        transformer=_mark_request_id,
        # Leave the request's header unchanged: the service does not read it.
        update_request_header=False,
    )


def _is_request_id(value: str) -> bool:
    return REQUEST_ID.fullmatch(value) is not None


def _mark_request_id(chosen: str) -> str:
    """Return a new id, or the client's with a prefix, so that no client can forge an id of the service."""
    return f"{CLIENT_PREFIX}{chosen}" if chosen else uuid4().hex
