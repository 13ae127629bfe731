"""The second factor of one's account."""

from fastapi import APIRouter
from fastapi.responses import Response

from app.accounts.second_factor import service as second_factor
from app.accounts.second_factor.codes import find_factor
from app.accounts.second_factor.schemas import PasswordConfirmation, SecondFactorCode
from app.core.context import ContextDep
from app.core.dependencies import SessionDep
from app.web.forms import FieldsDep, read_fields, show_form, shown_again
from app.web.visits import CallerDep, PersonDep, VisitDep

OVERVIEW, CONFIRM = "templates/second_factor.html", "templates/confirm_second_factor.html"
CODES = "templates/recovery_codes.html"

router = APIRouter(prefix="/second-factor")


@router.get("")
async def show_second_factor(visit: VisitDep, person: PersonDep, session: SessionDep) -> Response:
    is_on = await find_factor(session, person.id) is not None
    return show_form(visit, OVERVIEW, is_on=is_on)


@router.post("/begin")
async def begin_own_second_factor(visit: VisitDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with shown_again(visit, OVERVIEW, fields, is_on=False):
        begun = await second_factor.begin(ctx, caller, read_fields(PasswordConfirmation, fields))
    return show_form(visit, CONFIRM, secret=begun.secret)


@router.post("/confirm")
async def confirm_own_second_factor(visit: VisitDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    """The secret comes back with the form for one reason: to be shown again when the code was wrong."""
    secret = fields.pop("secret", "")
    with shown_again(visit, CONFIRM, fields, secret=secret):
        codes = await second_factor.confirm(ctx, caller, read_fields(SecondFactorCode, fields))
    if codes.recovery_codes:
        return visit.page(CODES, codes=codes.recovery_codes)
    return visit.go("/account", "flash.second_factor_on")


@router.post("/disable")
async def disable_own_second_factor(visit: VisitDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with shown_again(visit, OVERVIEW, fields, is_on=True):
        await second_factor.disable(ctx, caller, read_fields(PasswordConfirmation, fields))
    return visit.go("/account", "flash.second_factor_off")
