from typing import ClassVar, Literal

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from app.core.errors import AppError

# RFC 6749 §5.1 requires these headers for tokens. Errors get them too, as they may reveal something about accounts.
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}

# `mfa_required` is an extension (RFC 6749 §8.5): other services use this name as well.
ErrorCode = Literal["invalid_request", "invalid_grant", "invalid_scope", "unsupported_grant_type", "mfa_required"]


class OAuthError(AppError):
    """An error response in the OAuth format (RFC 6749 §5.2)."""

    status: ClassVar[int] = 400

    def __init__(
        self, error: ErrorCode, description: str, *, code: str | None = None, commit_anyway: bool = False
    ) -> None:
        """`code` identifies the error for the web pages; the OAuth response contains only `error`."""
        super().__init__(description, code=code or error.replace("_", "-"), commit_anyway=commit_anyway)
        self.error = error


async def handle_oauth_error(_request: Request, error: OAuthError) -> Response:
    content = {"error": error.error, "error_description": error.detail}
    return JSONResponse(content, error.status, NO_STORE)
