"""What RFC 6749 asks of an endpoint and FastAPI does otherwise."""

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.accounts.sign_in.exceptions import NO_STORE, OAuthError
from app.core.exceptions import UnsupportedMediaTypeError
from app.core.routing import FeatureRoute, Handler, require_media_type


class OAuthRoute(FeatureRoute):
    """Answer as OAuth clients expect: errors in their own format, and nothing stored."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_as_oauth(request: Request) -> Response:
            try:
                # Before the form is read: one with files would be stored in temporary files.
                require_media_type(request, takes_form=True)
                await _refuse_repeated_parameters(request)
                response = await handle(request)
            except (RequestValidationError, UnsupportedMediaTypeError) as error:
                raise OAuthError("invalid_request", "The body must be a form.") from error
            except HTTPException as error:
                if error.status_code != 400:
                    raise
                raise OAuthError("invalid_request", error.detail) from error
            response.headers.update(NO_STORE)
            return response

        return handle_as_oauth


async def _refuse_repeated_parameters(request: Request) -> None:
    """RFC 6749 §3.2."""
    try:
        form = await request.form()
    except ClientDisconnect as error:
        raise OAuthError("invalid_request", "The body did not arrive as a whole.") from error
    names = [name for name, _ in form.multi_items()]
    if len(names) != len(set(names)):
        raise OAuthError("invalid_request", "A parameter is repeated.")
