from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.params import Form
from fastapi.routing import APIRoute
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.routing import Match
from starlette.types import Scope

from app.core.exceptions import UnsupportedMediaTypeError
from app.core.requests import FORM
from app.core.uploads import UploadField

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class FeatureRoute(APIRoute):
    """Refuses a body of another kind than it takes: a form that a foreign page posts is never read as JSON.

    A route with an upload gets its body limit and its place in the OpenAPI document.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401  # passed on to APIRoute, which declares and checks them
        super().__init__(path, endpoint, **options)
        upload = _find_upload(self.dependant)
        if upload is not None:
            self.openapi_extra = {"requestBody": upload.request_body, **(self.openapi_extra or {})}
            self.max_body_size = upload.max_body_bytes
            self.app = RequestBodyLimitMiddleware(self.app, upload.max_body_bytes)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        takes_form = isinstance(self.body_field.field_info, Form)

        async def handle_media_type(request: Request) -> Response:
            require_media_type(request, takes_form=takes_form)
            return await handle(request)

        return handle_media_type


def _find_upload(dependant: Dependant) -> UploadField | None:
    if isinstance(dependant.call, UploadField):
        return dependant.call
    return next(filter(None, map(_find_upload, dependant.dependencies)), None)


def require_media_type(request: Request, *, takes_form: bool) -> None:
    sent = Message()
    sent["content-type"] = request.headers.get("content-type", "none/none")
    media_type = sent.get_content_type()
    if takes_form:
        if media_type != FORM:
            raise UnsupportedMediaTypeError(f"The body must be {FORM}.")
    elif media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaTypeError("The body must be application/json.")


class FeatureRouter(APIRouter):
    """Compares none of its routes with a path that its prefix is no part of; FastAPI tries them all in turn, twice."""

    def __init__(self, *, route_class: type[FeatureRoute] = FeatureRoute, **options: Any) -> None:  # noqa: ANN401  # passed on to APIRoute, which declares and checks themr
        super().__init__(route_class=route_class, **options)
        # A path holds no parameter literally, but values in its place.
        self._head = self.prefix.partition("{")[0]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if self._head in scope["path"] else (Match.NONE, {})
