import json
import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

import structlog
from asgi_correlation_id import correlation_id
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.project import read_project
from app.core.protocol import allowed_methods
from app.core.requests import AnswerWatch

logger = structlog.get_logger(__name__)

RETRY_AFTER = {"Retry-After": "1"}
# A body of the greatest size may have a hundred thousand mistakes; nobody reads so many.
MAX_FIELD_PROBLEMS = 100
# Of a foreign key and of what is unique: PostgreSQL has codes (SQLSTATE), SQLite has words.
CONFLICT_STATES = frozenset({"23503", "23505"})
CONFLICT_WORDS = ("FOREIGN KEY constraint failed", "UNIQUE constraint failed")
# The phrases of the first three depend on Python's version.
STATUS_CODES = {
    413: "content-too-large",
    414: "uri-too-long",
    422: "invalid-request",
    500: "internal-error",
    503: "unavailable",
}


class AppError(Exception):
    """A refusal by a service; becomes a problem document (RFC 9457).

    `detail` is a sentence for people and may be improved; `code` is stable: clients and translations rely on it.
    """

    status: ClassVar[int] = 500
    code: str = "internal-error"
    headers: Mapping[str, str] = {}  # replaced, never changed

    def __init__(self, detail: str, *, code: str | None = None, keeps_changes: bool = False) -> None:
        """With `keeps_changes` what was written before is committed: the change is part of the refusal."""
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.keeps_changes = keeps_changes

    def to_response(self, request: Request) -> Response:
        return problem_response(request.scope, self.status, self.detail, code=self.code, headers=self.headers)


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
        super().__init__(f"Insufficient scope: {scope} is required.")
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
        # The attempts that were counted before this one was refused stay counted.
        super().__init__(f"Too many attempts: try again in {retry_after_seconds} s.", keeps_changes=True)
        self.headers = {"Retry-After": str(retry_after_seconds)}


class UnavailableError(AppError):
    status = 503
    code = "unavailable"
    headers = RETRY_AFTER


class FieldProblem(BaseModel):
    location: list[str | int]
    message: str


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    code: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str | None
    errors: list[FieldProblem] | None = None


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document the errors of a route."""
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in statuses}


def problem_response(
    scope: Scope,
    status: int,
    detail: str,
    *,
    code: str | None = None,
    errors: list[FieldProblem] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Without a `code`, the status gives it, such as `not-found`."""
    code = code or STATUS_CODES.get(status) or HTTPStatus(status).phrase.lower().replace(" ", "-")
    problem = Problem(
        type=f"urn:problem-type:{read_project().name}:{code}",
        code=code,
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=scope["path"],
        request_id=correlation_id.get(),
        errors=errors,
    )
    # ASCII: a path or the name of a field may hold surrogates, which UTF-8 cannot encode.
    content = json.dumps(problem.model_dump(exclude_none=True), ensure_ascii=True)
    return Response(content, status, headers, media_type="application/problem+json")


async def handle_app_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AppError)  # noqa: S101  # for the type checker; registered for this class alone
    return error.to_response(request)


async def handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # for the type checker; registered for this class alone
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # Collect the methods of every route at this path: the exception has only those of one route.
        allow = {"Allow": ", ".join(allowed_methods(request.scope, request.app.routes))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        return problem_response(request.scope, error.status_code, error.detail, headers=allow)
    return problem_response(request.scope, error.status_code, error.detail, headers=error.headers)


async def handle_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  # for the type checker; registered for this class alone
    errors = error.errors()
    count = "" if len(errors) <= MAX_FIELD_PROBLEMS else f", the first {MAX_FIELD_PROBLEMS} of {len(errors)}"
    return problem_response(
        request.scope,
        422,
        f"The request is not valid: see errors{count}.",
        code="invalid-request",
        errors=field_problems(errors),
    )


def field_problems(errors: Sequence[Mapping[str, Any]]) -> list[FieldProblem]:
    """The first ones, without the rejected values: they may be secrets."""
    return [
        FieldProblem(location=list(error["loc"]), message=str(error["msg"]).removeprefix("Value error, "))
        for error in errors[:MAX_FIELD_PROBLEMS]
    ]


async def handle_database_error(request: Request, error: Exception) -> Response:
    """Answer 409 when another row went or came meanwhile, such as the caller's account.

    503 when the database is out of reach, too slow or too busy; anything else is our mistake, a 500.
    """
    if is_conflict(error):
        logger.warning("conflict in the database", reason=first_line(error))
        return problem_response(
            request.scope,
            409,
            "The resource was changed by another request. Reload it and try again.",
            code="changed-meanwhile",
        )
    if not is_database_unavailable(error):
        raise error
    logger.warning("database unavailable", error=type(error).__name__, reason=first_line(error))
    return problem_response(
        request.scope,
        503,
        "The database is not available. Try again in a moment.",
        code="database-unavailable",
        headers=RETRY_AFTER,
    )


def is_conflict(error: BaseException) -> bool:
    return isinstance(error, IntegrityError) and (
        getattr(error.orig, "sqlstate", None) in CONFLICT_STATES or first_line(error).startswith(CONFLICT_WORDS)
    )


def is_database_unavailable(error: BaseException) -> bool:
    if isinstance(error, PoolTimeoutError | OSError | TimeoutError):
        return True
    # OperationalError: refused, lost, shut down, statement timeout, SQLite's "database is locked".
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    )


def first_line(error: BaseException) -> str:
    """An error's message without the statement and the parameters that SQLAlchemy appends."""
    return str(getattr(error, "orig", None) or error).partition("\n")[0]


EXCEPTION_HANDLERS: Mapping[Any, Any] = {
    AppError: handle_app_error,
    HTTPException: handle_http_exception,
    RequestValidationError: handle_validation_error,
    SQLAlchemyError: handle_database_error,
}


class UnhandledErrorMiddleware:
    """Log what nothing else handled, with the request's id, and answer 500 without a word about the inside."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = AnswerWatch(send)
        try:
            await self.app(scope, receive, answer)
        except Exception:
            logger.exception("unhandled error", method=scope["method"], path=scope["path"])
            if answer.status is not None:
                raise
            await problem_response(
                scope, 500, "Internal error. Quote the request ID when you report it.", code="internal-error"
            )(scope, receive, send)


class PlainErrorMiddleware:
    """Turn the plain-text refusals of library middleware (hosts, CORS, body limit) into problem documents."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal: Message | None = None

        async def rewrite(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and _is_plain_error(message):
                refusal = message
            elif refusal is None:
                await send(message)
            elif not message.get("more_body"):
                detail = message.get("body", b"").decode()
                await _problem_from(scope, refusal, detail)(scope, receive, send)

        await self.app(scope, receive, rewrite)


def _is_plain_error(message: Message) -> bool:
    content_type = dict(message["headers"]).get(b"content-type", b"")
    return bool(message["status"] >= 400 and content_type.startswith(b"text/plain"))


def _problem_from(scope: Scope, refusal: Message, detail: str) -> Response:
    kept = {name.decode(): value.decode() for name, value in refusal["headers"] if not name.startswith(b"content-")}
    return problem_response(scope, refusal["status"], detail, headers=kept)


class PlainStartupMiddleware:
    """Say in a sentence why the database keeps the service from starting; Starlette would send a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def explain(message: Message) -> None:
            error = sys.exception()
            if error is not None and _is_of_the_database(error):
                message = {**message, "message": f"The database cannot be prepared: {first_line(error)}"}
            await send(message)

        await self.app(scope, receive, explain if scope["type"] == "lifespan" else send)


def _is_of_the_database(error: BaseException) -> bool:
    # Not above: who only serves does without Alembic.
    from alembic.util import CommandError

    from app.core.schema import MigrationsError

    return isinstance(error, MigrationsError | SQLAlchemyError | CommandError | OSError)
