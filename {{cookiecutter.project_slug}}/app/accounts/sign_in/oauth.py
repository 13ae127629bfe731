"""Requirements of RFC 6749 that differ from FastAPI's defaults."""

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException

from app.accounts.sign_in.exceptions import NO_STORE, OAuthError
from app.core.errors import UnsupportedMediaTypeError
from app.core.http.routing import FeatureRoute, Handler


class OAuthRoute(FeatureRoute):
    """A route whose errors have the OAuth format, and whose responses must not be cached."""

    def check_form(self, form: FormData) -> None:
        """Refuse repeated parameters (RFC 6749 §3.2)."""
        names = [name for name, _ in form.multi_items()]
        if len(names) != len(set(names)):
            raise OAuthError("invalid_request", "A parameter is repeated. Send each parameter once.")

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_as_oauth(request: Request) -> Response:
            try:
                response = await handle(request)
            except (RequestValidationError, UnsupportedMediaTypeError) as error:
                raise OAuthError("invalid_request", "The body must be a valid URL-encoded form.") from error
            except HTTPException as error:
                if error.status_code != 400:
                    raise
                raise OAuthError("invalid_request", error.detail) from error
            response.headers.update(NO_STORE)
            return response

        return handle_as_oauth
