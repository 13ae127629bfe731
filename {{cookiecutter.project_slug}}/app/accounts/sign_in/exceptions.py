from typing import ClassVar, Literal

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from app.core.exceptions import AppError

# RFC 6749 §5.1: also for the errors, which may tell about accounts.
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}

# The last is an extension (§8.5), by the name that others have given it.
ErrorCode = Literal["invalid_request", "invalid_grant", "invalid_scope", "unsupported_grant_type", "mfa_required"]


class OAuthError(AppError):
    """RFC 6749 §5.2."""

    status: ClassVar[int] = 400

    def __init__(self, error: ErrorCode, description: str, *, keeps_changes: bool = False) -> None:
        super().__init__(description, keeps_changes=keeps_changes)
        self.error = error

    def to_response(self, request: Request) -> Response:
        content = {"error": self.error, "error_description": self.detail}
        return JSONResponse(content, self.status, NO_STORE)
