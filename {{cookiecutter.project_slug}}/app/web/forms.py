"""Forms: reading them, validating them, and showing them again with their errors."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError

from app.core.errors import AppError, ForbiddenError, UnsupportedMediaTypeError
from app.core.http.forms import read_form
from app.core.http.middleware.body_limit import MAX_FORM_BYTES
from app.core.http.parsing import read_media_type, require_utf8
from app.core.http.problems import field_problems
from app.core.http.request import FORM, SAFE_METHODS, comes_from_other_site
from app.web.csrf import is_csrf_token
from app.web.page_context import PageContext, PageContextDep

CSRF_FIELD = "csrf_token"

ModelT = TypeVar("ModelT", bound=BaseModel)
Fields = dict[str, str]


class FormError(AppError):
    """Responds with the form and its errors; the transaction is committed or rolled back as for the original error."""

    def __init__(self, error: AppError, response: Response) -> None:
        super().__init__(error.detail, code=error.code, commit_anyway=error.commit_anyway)
        self.response = response


async def redisplay_form(_request: Request, error: FormError) -> Response:
    return error.response


@dataclass(frozen=True)
class FieldError:
    # `code` is the type of Pydantic's error, which selects the translation; `values` fill its placeholders.
    code: str
    detail: str
    values: Mapping[str, Any]


class InvalidFormError(AppError):
    status = 422
    code = "invalid-form"

    def __init__(self, error: ValidationError) -> None:
        super().__init__("Please correct the fields below.")
        errors = error.errors(include_input=False)
        self.problems = {
            str(problem.location[0]) if problem.location else "": FieldError(
                each["type"], problem.message, each.get("ctx", {})
            )
            for each, problem in zip(errors, field_problems(errors), strict=False)
        }


async def get_unverified_fields(request: Request) -> Fields:
    """Read the form's fields before their CSRF token is checked. Raises ForbiddenError for a form of another site."""
    require_utf8(request.scope["query_string"])
    if request.method in SAFE_METHODS:
        return {}
    if comes_from_other_site(request):
        raise ForbiddenError(
            "The form was sent from another site. Use the form of this site.", code="form-from-another-site"
        )
    if read_media_type(request.headers.get("content-type", "")) != FORM:
        raise UnsupportedMediaTypeError(f"The body must be {FORM}.")
    form = await read_form(request, MAX_FORM_BYTES)
    return {name: value.replace("\r\n", "\n") for name, value in form.items() if isinstance(value, str)}


UnverifiedFieldsDep = Annotated[Fields, Depends(get_unverified_fields)]


# Order of the parameters: the body must be read before the page's context takes a database connection. Otherwise a slow
# client would hold the connection.
async def get_fields(request: Request, unverified: UnverifiedFieldsDep, page: PageContextDep) -> Fields:
    """Return the form's fields. Raises ForbiddenError without a valid CSRF token."""
    if request.method in SAFE_METHODS:
        return {}
    fields = dict(unverified)
    if not is_csrf_token(page.web.signer, page.csrf_binding, fields.pop(CSRF_FIELD, "")):
        raise ForbiddenError("The form has expired. Reload the page and try again.", code="form-expired")
    return fields


FieldsDep = Annotated[Fields, Depends(get_fields)]


def validate_form(model: type[ModelT], fields: Fields, *, optional: Collection[str] = ()) -> ModelT:
    """Return the fields as a model; empty `optional` fields are None. Raises InvalidFormError."""
    values = {name: None if name in optional and not value else value for name, value in fields.items()}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise InvalidFormError(error) from error


def as_fields(record: object, names: Iterable[str]) -> Fields:
    """Return values of a record as the fields of a form have them."""
    return {name: _as_text(getattr(record, name)) for name in names}


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if isinstance(value, datetime) else str(value)


@contextmanager
def redisplay_errors(page: PageContext, template: str, fields: Fields, **values: object) -> Iterator[None]:
    """Respond to an AppError with the form, its errors and the entered values, except passwords and the field `otp`."""
    try:
        yield
    except AppError as error:
        problems = error.problems if isinstance(error, InvalidFormError) else {}
        entered = {name: value for name, value in fields.items() if "password" not in name and name != "otp"}
        response = page.render(template, error.status, fields=entered, problems=problems, error=error, **values)
        response.headers.update(error.headers)
        raise FormError(error, response) from error


def render_form(
    page: PageContext,
    template: str,
    fields: Fields | None = None,
    **values: Any,  # noqa: ANN401  # passed to Jinja
) -> Response:
    return page.render(template, fields=fields or {}, problems={}, error=None, **values)
