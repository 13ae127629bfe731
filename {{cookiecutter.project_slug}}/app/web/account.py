"""Pages of the account: name, e-mail address, password, sessions, deletion."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from app.accounts.passwords import service as passwords_service
from app.accounts.passwords.schemas import PasswordChange
from app.accounts.recovery import service as recovery_service
from app.accounts.recovery.schemas import EmailChange
from app.accounts.second_factor.confirmation import confirm_identity
from app.accounts.second_factor.schemas import PasswordConfirmation
from app.accounts.sessions import service as sessions
from app.accounts.sessions.service import SessionRecord
from app.accounts.users import service as users_service
from app.accounts.users.schemas import UserUpdate
from app.core.context import ContextDep
from app.core.dependencies import MailDep, SessionDep
from app.web import passkeys, second_factor
from app.web.forms import FieldsDep, redisplay_errors, render_form, validate_form
from app.web.navigation import PageGroup
from app.web.page_context import CallerDep, CurrentUserDep, PageContextDep

ACCOUNT, CHANGE_PASSWORD, CHANGE_EMAIL = (
    "templates/account.html",
    "templates/change_password.html",
    "templates/change_email.html",
)
SESSIONS, END_SESSION = "templates/sessions.html", "templates/end_session.html"
DELETE = "templates/delete_account.html"

# Every page of the account may ask for a passkey, which needs a script.
router = APIRouter(prefix="/account", dependencies=[Depends(passkeys.allow_script)])
router.include_router(second_factor.router)
router.include_router(passkeys.router)
page_group = PageGroup(router, "/account", "account.title")


async def get_own_session(session_id: UUID, caller: CallerDep, session: SessionDep) -> SessionRecord:
    return await sessions.get_session(session, caller, session_id)


OwnSessionDep = Annotated[SessionRecord, Depends(get_own_session)]


@router.get("")
async def show_account(page: PageContextDep, user: CurrentUserDep) -> Response:
    return render_form(page, ACCOUNT, {"name": user.name})


@router.post("")
async def change_account(page: PageContextDep, user: CurrentUserDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with redisplay_errors(page, ACCOUNT, fields):
        await users_service.update_user(ctx, user, validate_form(UserUpdate, fields), actor_id=user.id)
    return page.redirect("/account", "flash.saved")


@router.get("/password")
async def show_password_form(page: PageContextDep, _user: CurrentUserDep) -> Response:
    return render_form(page, CHANGE_PASSWORD)


@router.post("/password")
async def change_own_password(page: PageContextDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with redisplay_errors(page, CHANGE_PASSWORD, fields):
        opened = await passwords_service.change_password(ctx, caller, validate_form(PasswordChange, fields))
    page.set_session(opened.user_id, opened.session_id)
    return page.redirect("/account", "flash.password_changed")


@router.get("/email")
async def show_email_form(page: PageContextDep, _user: CurrentUserDep, _mail: MailDep) -> Response:
    return render_form(page, CHANGE_EMAIL)


@router.post("/email")
async def change_own_email(
    page: PageContextDep, caller: CallerDep, _mail: MailDep, fields: FieldsDep, ctx: ContextDep
) -> Response:
    with redisplay_errors(page, CHANGE_EMAIL, fields):
        await recovery_service.request_email_change(ctx, caller, validate_form(EmailChange, fields))
    return page.redirect("/account", "flash.check_your_email")


@router.get("/sessions")
async def show_sessions(page: PageContextDep, caller: CallerDep, session: SessionDep) -> Response:
    return page.render(SESSIONS, sessions=await sessions.list_sessions(session, caller))


@router.get("/sessions/{session_id}/end")
async def show_end_of_session(page: PageContextDep, own_session: OwnSessionDep) -> Response:
    return render_form(page, END_SESSION, session=own_session)


@router.post("/sessions/{session_id}/end")
async def end_own_session(
    page: PageContextDep, caller: CallerDep, own_session: OwnSessionDep, fields: FieldsDep, ctx: ContextDep
) -> Response:
    with redisplay_errors(page, END_SESSION, fields, session=own_session):
        if not own_session.is_current:
            await confirm_identity(ctx, caller, validate_form(PasswordConfirmation, fields))
        await sessions.end_session(ctx.session, ctx.audit, own_session.id)
    if own_session.is_current:
        page.clear_session()
        return page.redirect("/", "flash.signed_out")
    return page.redirect("/account/sessions", "flash.session_ended")


@router.get("/delete")
async def show_delete_form(page: PageContextDep, _user: CurrentUserDep) -> Response:
    return render_form(page, DELETE)


@router.post("/delete")
async def delete_account(page: PageContextDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with redisplay_errors(page, DELETE, fields):
        await confirm_identity(ctx, caller, validate_form(PasswordConfirmation, fields))
        await users_service.delete_user(ctx, caller.user, actor_id=caller.user.id)
    page.clear_session()
    return page.redirect("/", "flash.account_deleted")
