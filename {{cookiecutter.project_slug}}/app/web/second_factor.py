"""Pages of the account's authenticator app."""

from fastapi import APIRouter
from fastapi.responses import Response

from app.accounts.second_factor import service as second_factor
from app.accounts.second_factor.codes import find_factor
from app.accounts.second_factor.schemas import PasswordConfirmation, SecondFactorCode
from app.core.context import ContextDep
from app.core.dependencies import SessionDep
from app.web.forms import FieldsDep, redisplay_errors, render_form, validate_form
from app.web.page_context import CallerDep, CurrentUserDep, PageContextDep

OVERVIEW, CONFIRM = "templates/second_factor.html", "templates/confirm_second_factor.html"
CODES = "templates/recovery_codes.html"

router = APIRouter(prefix="/second-factor")


@router.get("")
async def show_second_factor(page: PageContextDep, user: CurrentUserDep, session: SessionDep) -> Response:
    is_on = await find_factor(session, user.id) is not None
    return render_form(page, OVERVIEW, is_on=is_on)


@router.post("/begin")
async def begin_own_second_factor(
    page: PageContextDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep
) -> Response:
    with redisplay_errors(page, OVERVIEW, fields, is_on=False):
        begun = await second_factor.begin(ctx, caller, validate_form(PasswordConfirmation, fields))
    return render_form(page, CONFIRM, secret=begun.secret)


@router.post("/confirm")
async def confirm_own_second_factor(
    page: PageContextDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep
) -> Response:
    """The form sends the secret only so that it can be shown again after a wrong code."""
    secret = fields.pop("secret", "")
    with redisplay_errors(page, CONFIRM, fields, secret=secret):
        codes = await second_factor.confirm(ctx, caller, validate_form(SecondFactorCode, fields))
    if codes.recovery_codes:
        return page.render(CODES, codes=codes.recovery_codes)
    return page.redirect("/account", "flash.second_factor_on")


@router.post("/disable")
async def disable_own_second_factor(
    page: PageContextDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep
) -> Response:
    with redisplay_errors(page, OVERVIEW, fields, is_on=True):
        await second_factor.disable(ctx, caller, validate_form(PasswordConfirmation, fields))
    return page.redirect("/account", "flash.second_factor_off")
