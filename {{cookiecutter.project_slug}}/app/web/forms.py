"""Forms: that they come from our own pages, what is in them, and how they are shown again with what was wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
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
from app.web.visits import Visit, VisitDep

CSRF_FIELD = "csrf_token"

ModelT = TypeVar("ModelT", bound=BaseModel)
Fields = dict[str, str]


class RefusedFormError(AppError):
    """The form is shown again; what was written before is kept or not as the refusal says."""

    def __init__(self, error: AppError, response: Response) -> None:
        super().__init__(error.detail, commit_anyway=error.commit_anyway)
        self.response = response


async def handle_refused_form(_request: Request, error: RefusedFormError) -> Response:
    return error.response


class InvalidFormError(AppError):
    status = 422

    def __init__(self, error: ValidationError) -> None:
        super().__init__("The form is not filled in right.")
        self.problems = {
            str(problem.location[0]) if problem.location else "": problem.message
            for problem in field_problems(error.errors(include_input=False))
        }


async def get_sent_fields(request: Request) -> Fields:
    """Read what was sent, from our own site as far as browsers tell."""
    require_utf8(request.scope["query_string"])
    if request.method in SAFE_METHODS:
        return {}
    if comes_from_other_site(request):
        raise ForbiddenError("The form comes from another site.")
    if read_media_type(request.headers.get("content-type", "")) != FORM:
        raise UnsupportedMediaTypeError(f"The body must be {FORM}.")
    form = await read_form(request, MAX_FORM_BYTES)
    return {name: value.replace("\r\n", "\n") for name, value in form.items() if isinstance(value, str)}


SentFieldsDep = Annotated[Fields, Depends(get_sent_fields)]


# Read before there is a visit, which begins a transaction: nobody waits for a body that does not arrive.
async def get_fields(request: Request, sent: SentFieldsDep, visit: VisitDep) -> Fields:
    """Return the fields of a form that one of our pages has sent. Raises ForbiddenError for any other."""
    if request.method in SAFE_METHODS:
        return {}
    fields = dict(sent)
    if not visit.owns_csrf_token(fields.pop(CSRF_FIELD, "")):
        raise ForbiddenError("The form is too old or not from here: go back, reload the page and try again.")
    return fields


FieldsDep = Annotated[Fields, Depends(get_fields)]


def read_fields(model: type[ModelT], fields: Fields) -> ModelT:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise InvalidFormError(error) from error


@contextmanager
def shown_again(visit: Visit, template: str, fields: Fields, **values: object) -> Iterator[None]:
    """Show the form with what was typed, passwords excepted, and with what was wrong."""
    try:
        yield
    except InvalidFormError as error:
        raise _refuse(visit, template, fields, error, error.problems, **values) from error
    except AppError as error:
        raise _refuse(visit, template, fields, error, {}, **values) from error


def show_form(
    visit: Visit,
    template: str,
    fields: Fields | None = None,
    **values: Any,  # noqa: ANN401  # to Jinja
) -> Response:
    return visit.page(template, fields=fields or {}, problems={}, refusal=None, **values)


def _refuse(
    visit: Visit,
    template: str,
    fields: Fields,
    error: AppError,
    problems: dict[str, str],
    **values: Any,  # noqa: ANN401  # to Jinja
) -> RefusedFormError:
    kept = {name: value for name, value in fields.items() if "password" not in name and name != "otp"}
    response = visit.page(template, error.status, fields=kept, problems=problems, refusal=error, **values)
    response.headers.update(error.headers)
    return RefusedFormError(error, response)
