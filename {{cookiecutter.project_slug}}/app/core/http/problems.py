import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from asgi_correlation_id import correlation_id
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.core.db.errors import is_conflict, is_database_unavailable
from app.core.errors import RETRY_AFTER, AppError, first_line
from app.core.http.paths import allowed_methods
from app.core.project import read_project

logger = structlog.get_logger(__name__)
# Maximum number of field errors in a response: a request body of the maximum size may have 100,000 invalid fields.
MAX_FIELD_PROBLEMS = 100
# Codes that are not derived from the status phrase; the phrases of 413, 414 and 422 depend on the Python version.
STATUS_CODES = {
    413: "content-too-large",
    414: "uri-too-long",
    422: "invalid-request",
    500: "internal-error",
    503: "unavailable",
}


class FieldProblem(BaseModel):
    location: list[str | int]
    message: str


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str
    code: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str | None
    errors: list[FieldProblem] | None = None


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` argument of a FastAPI route, which documents these error statuses."""
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
    """Return a problem document; the default `code` is derived from the status, such as `not-found`."""
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
    # ASCII: a path or a field name may contain surrogates, which UTF-8 cannot encode.
    content = json.dumps(problem.model_dump(exclude_none=True), ensure_ascii=True)
    return Response(content, status, headers, media_type="application/problem+json")


async def handle_app_error(request: Request[Any], error: Exception) -> Response:
    assert isinstance(error, AppError)  # noqa: S101  # for the type checker: registered for this class
    return problem_response(request.scope, error.status, error.detail, code=error.code, headers=error.headers)


async def handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # for the type checker: registered for this class
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The exception lists only the methods of one route at this path.
        allow = {"Allow": ", ".join(allowed_methods(request.scope, request.app.routes))}
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=allow)
        return problem_response(request.scope, error.status_code, error.detail, headers=allow)
    return problem_response(request.scope, error.status_code, error.detail, headers=error.headers)


async def handle_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  # for the type checker: registered for this class
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
    """Return the first errors, without the rejected values, which may be secrets."""
    return [
        FieldProblem(location=list(error["loc"]), message=str(error["msg"]).removeprefix("Value error, "))
        for error in errors[:MAX_FIELD_PROBLEMS]
    ]


async def handle_database_error(request: Request, error: Exception) -> Response:
    """Respond with 409 to a conflict of transactions, or with 503 if the database is unavailable or overloaded.

    Raise any other error again: it is a fault of the service, to which InternalErrorMiddleware responds with 500.
    """
    if is_conflict(error):
        logger.warning("conflict in the database", reason=first_line(error))
        # Forms cannot send DELETE: their paths end with /delete.
        if request.method == "DELETE" or request.url.path.endswith("/delete"):
            return problem_response(
                request.scope,
                409,
                "Other resources refer to this one. Delete or change them first.",
                code="still-referenced",
            )
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


EXCEPTION_HANDLERS: Mapping[Any, Any] = {
    AppError: handle_app_error,
    HTTPException: handle_http_exception,
    RequestValidationError: handle_validation_error,
    SQLAlchemyError: handle_database_error,
}
