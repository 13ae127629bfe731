from http import HTTPStatus

from starlette.middleware.body_limit import RequestBodyLimitMiddleware, RequestBodyLimitResponder
from starlette.types import Message, Receive, Scope, Send

from app.core.http.parsing import read_media_type
from app.core.http.request import FORM

# Enough for the longest form of a web page: short fields, and a text of 10,000 characters, each of which takes up to 12
# bytes when it is percent-encoded.
MAX_FORM_BYTES = 128 * 1024


def _is_form(scope: Scope) -> bool:
    types = (value.decode("latin-1") for name, value in scope["headers"] if name == b"content-type")
    return read_media_type(next(types, "")) == FORM


class BodyLimitMiddleware(RequestBodyLimitMiddleware):
    """Rejects a body larger than `max_body_size`, and a form larger than MAX_FORM_BYTES, with 413.

    If the route refuses the caller with 401, the client gets this 401 instead of the 413.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            limit = min(self.max_body_size, MAX_FORM_BYTES) if _is_form(scope) else self.max_body_size
            await _BodyLimitResponder(self.app, limit)(scope, receive, send)


class _BodyLimitResponder(RequestBodyLimitResponder):
    async def send_with_limit(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == HTTPStatus.UNAUTHORIZED:
            self.response_started = True
            await self.send(message)
        else:
            await super().send_with_limit(message)
