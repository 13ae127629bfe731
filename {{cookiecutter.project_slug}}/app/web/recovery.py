"""Accounts by mail: verify an address, set a forgotten password."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from app.accounts.recovery import service as recovery_service
from app.accounts.recovery.schemas import EmailAddress, EmailVerification, PasswordReset
from app.core.email import require_mail
from app.core.security import reserve_hash
from app.core.toolbox import ToolboxDep
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
async def verify_own_email(visit: VisitDep, fields: FieldsDep, tools: ToolboxDep) -> Response:
    with shown_again(visit, VERIFY, fields):
        data = read_fields(EmailVerification, fields)
        await recovery_service.verify_email(tools, data)
    return visit.go("/", "flash.email_verified")


@router.get("/forgot-password", dependencies=[require_mail])
async def show_forgotten(visit: VisitDep) -> Response:
    return show_form(visit, FORGOT)


@router.post("/forgot-password", dependencies=[require_mail])
async def send_reset_code(visit: VisitDep, fields: FieldsDep, tools: ToolboxDep) -> Response:
    """The same answer whether or not there is such an account."""
    with shown_again(visit, FORGOT, fields):
        data = read_fields(EmailAddress, fields)
        await recovery_service.request_password_reset(tools, data.email)
    return visit.go("/log-in", "flash.see_your_mail")


@router.get("/reset-password")
async def show_reset(visit: VisitDep, token: LinkedToken = "") -> Response:
    return show_form(visit, RESET, {"token": token})


@router.post("/reset-password", dependencies=[reserve_hash])
async def reset_own_password(visit: VisitDep, fields: FieldsDep, tools: ToolboxDep) -> Response:
    with shown_again(visit, RESET, fields):
        data = read_fields(PasswordReset, fields)
        await recovery_service.reset_password(tools, data.token, data.new_password.get_secret_value())
    return visit.go("/log-in", "flash.password_changed")
