from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, runtime_checkable

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.params import Form
from fastapi.routing import APIRoute
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from app.core.errors import ForbiddenError, UnsupportedMediaTypeError
from app.core.http.forms import read_form
from app.core.http.parsing import read_media_type, require_utf8
from app.core.http.request import FORM, SAFE_METHODS, comes_from_other_site
from app.core.http.uploads import UploadField

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
CallableT = TypeVar("CallableT")


@runtime_checkable
class Authenticator(Protocol):
    """A security scheme that FeatureRoute calls before it reads the rest of the request."""

    async def authenticate(self, request: Request) -> None:
        """Raise UnauthorizedError unless the caller is authenticated."""


class FeatureRoute(APIRoute):
    """A route that authenticates the caller first, and then checks the media type of the body.

    - An unauthenticated caller gets a 401 before anything else is validated.
    - A form that a page of another site posts is never parsed as JSON.
    - A route without authentication rejects unsafe methods from pages of other sites, except those in CORS_ORIGINS.
      Otherwise such a page could lock out its visitors: their browsers send forms without a preflight, and rate limits
      would count these attempts against the visitors.
    - Responses of a route with authentication get `Cache-Control: no-store`, unless the route sets the header itself.
    - A route with an upload gets the body limit of the upload, and documents its body.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401  # passed on to APIRoute, which declares and checks them
        super().__init__(path, endpoint, **options)
        upload = _find(UploadField, self.dependant)
        if upload is not None:
            self.openapi_extra = {"requestBody": upload.request_body, **(self.openapi_extra or {})}
            self.max_body_size = upload.max_body_bytes
            self.app = RequestBodyLimitMiddleware(self.app, upload.max_body_bytes)
        self._is_for_callers = _find_scheme(self.dependant) is not None

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().handle(scope, receive, _forbid_storing(send) if self._is_for_callers else send)

    def check_form(self, form: FormData) -> None:
        """Accept every form; a subclass may raise an AppError to refuse a form before its fields are validated."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        # Call the security scheme here, because FastAPI reads the body before it runs any dependency.
        scheme = _find_scheme(self.dependant)
        is_for_guests = scheme is None and not SAFE_METHODS.issuperset(self.methods or ())
        takes_body = self.body_field is not None
        takes_form = self.body_field is not None and isinstance(self.body_field.field_info, Form)

        async def handle_in_order(request: Request) -> Response:
            if is_for_guests and comes_from_other_site(request, request.state["settings"].cors_origins):
                raise ForbiddenError(
                    "The request comes from a page of another site. An operator can allow that site in CORS_ORIGINS.",
                    code="cross-site-request",
                )
            # Only tests override dependencies, such as the caller, and then send no valid token.
            if scheme is not None and not request.app.dependency_overrides:
                await scheme.authenticate(request)
            if query := request.scope["query_string"]:
                require_utf8(query)
            if takes_body:
                require_media_type(request, takes_form=takes_form)
            if takes_form:
                self.check_form(await read_form(request))
            try:
                return await handle(request)
            except HTTPException as error:
                if isinstance(error.__cause__, UnicodeDecodeError):
                    raise HTTPException(
                        error.status_code, "The body is not valid UTF-8: encode it as UTF-8."
                    ) from error
                raise

        return handle_in_order


def _find_scheme(dependant: Dependant) -> Authenticator | None:
    return _find(Authenticator, dependant)  # type: ignore[type-abstract]  # mypy rejects a protocol as type[T]; only isinstance uses it


def _find(kind: type[CallableT], dependant: Dependant) -> CallableT | None:
    """Return the first dependency of this kind at any depth."""
    if isinstance(dependant.call, kind):
        return dependant.call
    found = (_find(kind, each) for each in dependant.dependencies)
    return next((each for each in found if each is not None), None)


def _forbid_storing(send: Send) -> Send:
    async def send_private(message: Message) -> None:
        if message["type"] == "http.response.start":
            # MutableHeaders, which encodes and compares each name, would be slow: this runs for nearly every response.
            headers = message.setdefault("headers", [])
            if b"cache-control" not in dict(headers):
                message["headers"] = [*headers, (b"cache-control", b"no-store")]
        await send(message)

    return send_private


def require_media_type(request: Request, *, takes_form: bool) -> None:
    media_type = read_media_type(request.headers.get("content-type", ""))
    if takes_form:
        if media_type != FORM:
            raise UnsupportedMediaTypeError(f"The body must be {FORM}.")
    elif media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaTypeError("The body must be application/json.")


class FeatureRouter(APIRouter):
    """A router that skips its routes if the path does not contain its prefix; FastAPI would try each route twice."""

    def __init__(self, *, route_class: type[FeatureRoute] = FeatureRoute, **options: Any) -> None:  # noqa: ANN401  # passed on to APIRoute, which declares and checks them
        super().__init__(route_class=route_class, **options)
        # The prefix up to its first parameter: paths contain a value in place of each parameter.
        self._head = self.prefix.partition("{")[0]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if self._head in scope["path"] else (Match.NONE, {})
