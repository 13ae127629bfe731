"""Accounts by mail: verify an address, set a forgotten password."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from app.accounts.emails import EmailKind, limit_messages
from app.accounts.recovery import service as recovery_service
from app.accounts.recovery.dependencies import take_code_attempt
from app.accounts.recovery.schemas import EmailRequest, EmailVerification, PasswordReset
from app.core.context import Context, ContextDep
from app.core.db.session import release_connection
from app.core.dependencies import require_mail, reserve_hash
from app.outbox import service as outbox_service
from app.web.forms import FieldsDep, read_fields, show_form, shown_again
from app.web.sections import Section
from app.web.visits import VisitDep

VERIFY, FORGOT, RESET = "templates/verify_email.html", "templates/forgot_password.html", "templates/reset_password.html"

# What the link of a message ends with.
LinkedToken = Annotated[str, Query(alias="token", max_length=100)]

router = APIRouter()
section = Section(router)


@router.get("/verify-email")
async def show_verification(visit: VisitDep, token: LinkedToken = "") -> Response:
    return show_form(visit, VERIFY, {"token": token})


@router.post("/verify-email", dependencies=[reserve_hash])
async def verify_own_email(visit: VisitDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with shown_again(visit, VERIFY, fields):
        data = read_fields(EmailVerification, fields)
        await _take_attempt(ctx)
        await recovery_service.verify_email(ctx, data)
    return visit.go("/", "flash.email_verified")


@router.get("/forgot-password", dependencies=[require_mail])
async def show_forgotten(visit: VisitDep) -> Response:
    return show_form(visit, FORGOT)


@router.post("/forgot-password", dependencies=[require_mail])
async def send_reset_code(visit: VisitDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    """The same answer whether or not there is such an account."""
    with shown_again(visit, FORGOT, fields):
        data = read_fields(EmailRequest, fields)
        await release_connection(ctx.session)
        await limit_messages(ctx, EmailKind.PASSWORD_RESET, data.email)
        await outbox_service.enqueue(ctx.session, EmailKind.PASSWORD_RESET, data.email)
    return visit.go("/log-in", "flash.see_your_mail")


@router.get("/reset-password")
async def show_reset(visit: VisitDep, token: LinkedToken = "") -> Response:
    return show_form(visit, RESET, {"token": token})


@router.post("/reset-password", dependencies=[reserve_hash])
async def reset_own_password(visit: VisitDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with shown_again(visit, RESET, fields):
        data = read_fields(PasswordReset, fields)
        await _take_attempt(ctx)
        await recovery_service.reset_password(ctx, data.token, data.new_password.get_secret_value())
    return visit.go("/log-in", "flash.password_changed")


async def _take_attempt(ctx: Context) -> None:
    await release_connection(ctx.session)
    await take_code_attempt(ctx.settings, ctx.throttle, ctx.client)
