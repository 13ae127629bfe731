"""Pages: home, sign-up, sign-in, sign-out."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import JSONResponse, Response

from app.accounts.scopes import Scope
from app.accounts.second_factor import passkeys
from app.accounts.sessions import service as sessions
from app.accounts.sign_in import service as sign_in_service
from app.accounts.sign_in.schemas import PasskeySignIn, TokenForm
from app.accounts.sign_up import service as sign_up_service
from app.accounts.sign_up.dependencies import require_open_registration
from app.accounts.users.schemas import UserCreate
from app.core.context import Context, ContextDep
from app.core.dependencies import reserve_hash
from app.web.forms import Fields, FieldsDep, redisplay_errors, render_form, validate_form
from app.web.navigation import PageGroup
from app.web.page_context import PageContext, PageContextDep
from app.web.passkeys import allow_script

HOME, SIGN_UP, SIGN_IN = "templates/home.html", "templates/sign_up.html", "templates/sign_in.html"
# Only a path of this service: `next` must not redirect to a phishing site after the sign-in.
OWN_PATH = re.compile(r"/[a-z0-9-]+(/[a-z0-9-]+)*")

router = APIRouter()
page_group = PageGroup(router)


@router.get("/")
async def show_home(page: PageContextDep) -> Response:
    return page.render(HOME)


@router.get("/sign-up", dependencies=[Depends(require_open_registration)])
async def show_sign_up(page: PageContextDep) -> Response:
    return render_form(page, SIGN_UP)


@router.post("/sign-up", dependencies=[Depends(require_open_registration), reserve_hash])
async def sign_up(page: PageContextDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with redisplay_errors(page, SIGN_UP, fields):
        data = validate_form(UserCreate, fields)
        user = await sign_up_service.sign_up(ctx, data)
    if user is None:
        return page.redirect("/sign-in", "flash.check_your_email")
    return page.redirect("/sign-in", "flash.signed_up")


@router.get("/sign-in", dependencies=[Depends(allow_script)])
async def show_sign_in(page: PageContextDep, following: Annotated[str, Query(alias="next")] = "/") -> Response:
    if page.user is not None:
        return page.redirect(own_path(following))
    return render_form(page, SIGN_IN, following=own_path(following), asks_code=False)


@router.post("/sign-in", dependencies=[Depends(allow_script)])
async def sign_in(page: PageContextDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    following = own_path(fields.get("next", ""))
    with redisplay_errors(page, SIGN_IN, fields, following=following, asks_code="otp" in fields):
        opened = await sign_in_service.open_session(ctx, _read_credentials(fields))
    await _end_current_session(page, ctx)
    page.set_session(opened.user_id, opened.session_id)
    return page.redirect(following)


@router.post("/sign-in/passkey/options")
async def begin_passkey(page: PageContextDep, ctx: ContextDep) -> Response:
    """Return the WebAuthn options with which passkeys.js asks the browser for a passkey.

    The challenge in the options is valid only for the current session or, if nobody is signed in, for this browser.
    """
    session_id = page.caller and page.caller.session_id
    options = await passkeys.make_options(ctx, bound_to=str(session_id or page.anonymous_id))
    return page.cookies.apply_to(JSONResponse(options, headers={"Cache-Control": "no-store"}))


@router.post("/sign-in/passkey", dependencies=[Depends(allow_script)])
async def sign_in_with_passkey(page: PageContextDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    following = own_path(fields.get("next", ""))
    with redisplay_errors(page, SIGN_IN, {}, following=following, asks_code=False):
        sent = validate_form(PasskeySignIn, {"credential": fields.get("credential", "")})
        data = sent.model_copy(update={"scope": frozenset({Scope.ACCOUNT})})
        opened = await sign_in_service.open_session_with_passkey(ctx, data, page.anonymous_id)
    await _end_current_session(page, ctx)
    page.set_session(opened.user_id, opened.session_id)
    return page.redirect(following)


@router.post("/sign-out")
async def sign_out(page: PageContextDep, ctx: ContextDep) -> Response:
    await _end_current_session(page, ctx)
    page.clear_session()
    return page.redirect("/", "flash.signed_out")


def own_path(path: str) -> str:
    return path if OWN_PATH.fullmatch(path) else "/"


def _read_credentials(fields: Fields) -> TokenForm:
    """Return the credentials of the form, with the scope `account`: no page needs the scope `admin`."""
    return TokenForm(
        username=fields.get("email"),
        password=fields.get("password"),
        otp=fields.get("otp"),
        scope=Scope.ACCOUNT,
    )


async def _end_current_session(page: PageContext, ctx: Context) -> None:
    """End the browser's session before its cookie is replaced or deleted."""
    if page.user is not None and page.session_cookie is not None:
        await sessions.end_session(ctx.session, ctx.audit, page.session_cookie.session_id)
