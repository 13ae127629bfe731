from collections.abc import Mapping
from typing import ClassVar

RETRY_AFTER = {"Retry-After": "1"}


class AppError(Exception):
    """An error to report to the caller: a route responds with a problem document (RFC 9457), a command prints `detail`.

    `detail` is a sentence for people and may change. `code` is stable: clients and translations rely on it.
    """

    status: ClassVar[int] = 500
    code: str = "internal-error"
    headers: Mapping[str, str] = {}  # subclasses and instances replace it

    def __init__(self, detail: str, *, code: str | None = None, commit_anyway: bool = False) -> None:
        """Create an error; `commit_anyway` commits what the request has written, such as a counted attempt."""
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.commit_anyway = commit_anyway


class UnauthorizedError(AppError):
    status = 401
    code = "invalid-token"
    # RFC 6750 §3.1
    headers: Mapping[str, str] = {"WWW-Authenticate": 'Bearer error="invalid_token"'}


class ForbiddenError(AppError):
    status = 403
    code = "forbidden"


class InsufficientScopeError(ForbiddenError):
    code = "insufficient-scope"

    def __init__(self, scope: str) -> None:
        super().__init__(f"The access token lacks the scope {scope}. Sign in again, and request this scope.")
        # RFC 6750 §3.1
        self.headers = {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'}


class NotFoundError(AppError):
    status = 404
    code = "not-found"


class ConflictError(AppError):
    status = 409
    code = "conflict"


class ContentTooLargeError(AppError):
    status = 413
    code = "content-too-large"


class UnsupportedMediaTypeError(AppError):
    status = 415
    code = "unsupported-media-type"


class UnprocessableError(AppError):
    status = 422
    code = "invalid-request"


class TooManyRequestsError(AppError):
    status = 429
    code = "too-many-requests"

    def __init__(self, retry_after_seconds: int) -> None:
        # Keep the attempts that were counted before this error.
        super().__init__(f"Too many attempts: try again in {retry_after_seconds} s.", commit_anyway=True)
        self.headers = {"Retry-After": str(retry_after_seconds)}


class UnavailableError(AppError):
    status = 503
    code = "unavailable"
    headers = RETRY_AFTER


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without the statement and parameters that SQLAlchemy appends."""
    return str(getattr(error, "orig", None) or error).partition("\n")[0]
