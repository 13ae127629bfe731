"""The door: home, sign-up, log-in and log-out."""

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
from app.core.security import reserve_hash
from app.core.toolbox import Toolbox, ToolboxDep
from app.web.forms import Fields, FieldsDep, read_fields, show_form, shown_again
from app.web.passkeys import allow_script
from app.web.sections import Section
from app.web.visits import Visit, VisitDep

HOME, SIGN_UP, LOG_IN = "templates/home.html", "templates/sign_up.html", "templates/log_in.html"
# A path of this service and nothing else: no link leads from our log-in to somebody else's copy of it.
OWN_PATH = re.compile(r"/[a-z0-9-]+(/[a-z0-9-]+)*")

router = APIRouter()
section = Section(router)


@router.get("/")
async def show_home(visit: VisitDep) -> Response:
    return visit.page(HOME)


@router.get("/sign-up", dependencies=[Depends(require_open_registration)])
async def show_sign_up(visit: VisitDep) -> Response:
    return show_form(visit, SIGN_UP)


@router.post("/sign-up", dependencies=[Depends(require_open_registration), reserve_hash])
async def sign_up(visit: VisitDep, fields: FieldsDep, tools: ToolboxDep) -> Response:
    with shown_again(visit, SIGN_UP, fields):
        data = read_fields(UserCreate, fields)
        user = await sign_up_service.sign_up(tools, data)
    if user is None:
        return visit.go("/log-in", "flash.see_your_mail")
    return visit.go("/log-in", "flash.signed_up")


@router.get("/log-in", dependencies=[Depends(allow_script)])
async def show_log_in(visit: VisitDep, following: Annotated[str, Query(alias="next")] = "/") -> Response:
    if visit.user is not None:
        return visit.go(own_path(following))
    return show_form(visit, LOG_IN, following=own_path(following), asks_code=False)


@router.post("/log-in", dependencies=[Depends(allow_script)])
async def log_in(visit: VisitDep, fields: FieldsDep, tools: ToolboxDep) -> Response:
    following = own_path(fields.get("next", ""))
    with shown_again(visit, LOG_IN, fields, following=following, asks_code="otp" in fields):
        opened = await sign_in_service.open_session(tools, _read_credentials(fields))
    await _leave(visit, tools)
    visit.sign_in(opened.user_id, opened.session_id)
    return visit.go(following)


@router.post("/log-in/passkey/options")
async def begin_passkey(visit: VisitDep, tools: ToolboxDep) -> Response:
    """For passkeys.js: the answer must come from this browser, or from this session."""
    session_id = visit.caller and visit.caller.session_id
    options = await passkeys.make_options(tools, bound_to=str(session_id or visit.visitor))
    return visit.carry(JSONResponse(options, headers={"Cache-Control": "no-store"}))


@router.post("/log-in/passkey", dependencies=[Depends(allow_script)])
async def log_in_with_passkey(visit: VisitDep, fields: FieldsDep, tools: ToolboxDep) -> Response:
    following = own_path(fields.get("next", ""))
    with shown_again(visit, LOG_IN, {}, following=following, asks_code=False):
        sent = read_fields(PasskeySignIn, {"credential": fields.get("credential", "")})
        data = sent.model_copy(update={"scope": frozenset({Scope.ACCOUNT})})
        opened = await sign_in_service.open_session_with_passkey(tools, data, visit.visitor)
    await _leave(visit, tools)
    visit.sign_in(opened.user_id, opened.session_id)
    return visit.go(following)


@router.post("/log-out")
async def log_out(visit: VisitDep, tools: ToolboxDep) -> Response:
    await _leave(visit, tools)
    visit.sign_out()
    return visit.go("/", "flash.logged_out")


def own_path(path: str) -> str:
    return path if OWN_PATH.fullmatch(path) else "/"


def _read_credentials(fields: Fields) -> TokenForm:
    """Without the rights of an administrator, which no page needs."""
    return TokenForm(
        username=fields.get("email"),
        password=fields.get("password"),
        otp=fields.get("otp"),
        scope=Scope.ACCOUNT,
    )


async def _leave(visit: Visit, tools: Toolbox) -> None:
    """End the session that the browser has: nothing leads to it any more."""
    if visit.user is not None and visit.cookie is not None:
        await sessions.end_session(tools.session, tools.audit, visit.cookie.session_id)
