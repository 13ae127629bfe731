"""One's account: name, address, password, sessions, and its end."""

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
from app.web.forms import FieldsDep, read_fields, show_form, shown_again
from app.web.sections import Section
from app.web.visits import CallerDep, PersonDep, VisitDep

ACCOUNT, PASSWORD, EMAIL = "templates/account.html", "templates/password.html", "templates/email.html"
SESSIONS, END_SESSION = "templates/sessions.html", "templates/end_session.html"
DELETE = "templates/delete_account.html"

# Any of these pages may ask for a passkey.
router = APIRouter(prefix="/account", dependencies=[Depends(passkeys.allow_script)])
router.include_router(second_factor.router)
router.include_router(passkeys.router)
section = Section(router, "/account", "account.title")


async def get_session_of_person(session_id: UUID, caller: CallerDep, session: SessionDep) -> SessionRecord:
    return await sessions.get_session(session, caller, session_id)


OwnSessionDep = Annotated[SessionRecord, Depends(get_session_of_person)]


@router.get("")
async def show_account(visit: VisitDep, person: PersonDep) -> Response:
    return show_form(visit, ACCOUNT, {"name": person.name})


@router.post("")
async def change_account(visit: VisitDep, person: PersonDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with shown_again(visit, ACCOUNT, fields):
        await users_service.update_user(ctx, person, read_fields(UserUpdate, fields), actor_id=person.id)
    return visit.go("/account", "flash.saved")


@router.get("/password")
async def show_password_form(visit: VisitDep, _person: PersonDep) -> Response:
    return show_form(visit, PASSWORD)


@router.post("/password")
async def change_own_password(visit: VisitDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with shown_again(visit, PASSWORD, fields):
        opened = await passwords_service.change_password(ctx, caller, read_fields(PasswordChange, fields))
    visit.sign_in(opened.user_id, opened.session_id)
    return visit.go("/account", "flash.password_changed")


@router.get("/email")
async def show_email_form(visit: VisitDep, _person: PersonDep, _mail: MailDep) -> Response:
    return show_form(visit, EMAIL)


@router.post("/email")
async def change_own_email(
    visit: VisitDep, caller: CallerDep, _mail: MailDep, fields: FieldsDep, ctx: ContextDep
) -> Response:
    with shown_again(visit, EMAIL, fields):
        await recovery_service.request_email_change(ctx, caller, read_fields(EmailChange, fields))
    return visit.go("/account", "flash.see_your_mail")


@router.get("/sessions")
async def show_sessions(visit: VisitDep, caller: CallerDep, session: SessionDep) -> Response:
    return visit.page(SESSIONS, sessions=await sessions.list_sessions(session, caller))


@router.get("/sessions/{session_id}/end")
async def show_end_of_session(visit: VisitDep, own_session: OwnSessionDep) -> Response:
    return show_form(visit, END_SESSION, session=own_session)


@router.post("/sessions/{session_id}/end")
async def end_own_session(
    visit: VisitDep, caller: CallerDep, own_session: OwnSessionDep, fields: FieldsDep, ctx: ContextDep
) -> Response:
    with shown_again(visit, END_SESSION, fields, session=own_session):
        if not own_session.is_current:
            await confirm_identity(ctx, caller, read_fields(PasswordConfirmation, fields))
        await sessions.end_session(ctx.session, ctx.audit, own_session.id)
    if own_session.is_current:
        visit.sign_out()
        return visit.go("/", "flash.logged_out")
    return visit.go("/account/sessions", "flash.session_ended")


@router.get("/delete")
async def show_delete_form(visit: VisitDep, _person: PersonDep) -> Response:
    return show_form(visit, DELETE)


@router.post("/delete")
async def delete_account(visit: VisitDep, caller: CallerDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with shown_again(visit, DELETE, fields):
        await confirm_identity(ctx, caller, read_fields(PasswordConfirmation, fields))
        await users_service.delete_user(ctx, caller.user, actor_id=caller.user.id)
    visit.sign_out()
    return visit.go("/", "flash.account_deleted")
