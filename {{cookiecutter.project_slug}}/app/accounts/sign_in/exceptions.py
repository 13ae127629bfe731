from typing import ClassVar, Literal

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from app.core.errors import AppError

# RFC 6749 §5.1: also for the errors, which may tell about accounts.
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}

# The last is an extension (§8.5), by the name that others have given it.
ErrorCode = Literal["invalid_request", "invalid_grant", "invalid_scope", "unsupported_grant_type", "mfa_required"]


class OAuthError(AppError):
    """RFC 6749 §5.2."""

    status: ClassVar[int] = 400

    def __init__(self, error: ErrorCode, description: str, *, commit_anyway: bool = False) -> None:
        super().__init__(description, commit_anyway=commit_anyway)
        self.error = error


async def handle_oauth_error(_request: Request, error: OAuthError) -> Response:
    content = {"error": error.error, "error_description": error.detail}
    return JSONResponse(content, error.status, NO_STORE)
