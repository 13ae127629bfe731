"""Pages that e-mails link to: confirm an address, reset a password."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response

from app.accounts.recovery import service as recovery_service
from app.accounts.recovery.schemas import EmailRequest, EmailVerification, PasswordReset
from app.core.context import ContextDep
from app.core.dependencies import require_mail, reserve_hash
from app.web.forms import FieldsDep, redisplay_errors, render_form, validate_form
from app.web.navigation import PageGroup
from app.web.page_context import PageContextDep

VERIFY, FORGOT, RESET = "templates/verify_email.html", "templates/forgot_password.html", "templates/reset_password.html"

# The token in the link of an e-mail.
LinkedToken = Annotated[str, Query(alias="token", max_length=100)]

router = APIRouter()
page_group = PageGroup(router)


@router.get("/verify-email")
async def show_verification(page: PageContextDep, token: LinkedToken = "") -> Response:
    return render_form(page, VERIFY, {"token": token})


@router.post("/verify-email", dependencies=[reserve_hash])
async def verify_own_email(page: PageContextDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with redisplay_errors(page, VERIFY, fields):
        data = validate_form(EmailVerification, fields)
        await recovery_service.verify_email(ctx, data)
    return page.redirect("/", "flash.email_verified")


@router.get("/forgot-password", dependencies=[require_mail])
async def show_forgotten(page: PageContextDep) -> Response:
    return render_form(page, FORGOT)


@router.post("/forgot-password", dependencies=[require_mail])
async def send_reset_code(page: PageContextDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    """Respond the same whether or not the account exists."""
    with redisplay_errors(page, FORGOT, fields):
        data = validate_form(EmailRequest, fields)
        await recovery_service.request_password_reset(ctx, data.email)
    return page.redirect("/sign-in", "flash.check_your_email")


@router.get("/reset-password")
async def show_reset(page: PageContextDep, token: LinkedToken = "") -> Response:
    return render_form(page, RESET, {"token": token})


@router.post("/reset-password", dependencies=[reserve_hash])
async def reset_own_password(page: PageContextDep, fields: FieldsDep, ctx: ContextDep) -> Response:
    with redisplay_errors(page, RESET, fields):
        data = validate_form(PasswordReset, fields)
        await recovery_service.reset_password(ctx, data.token, data.new_password.get_secret_value())
    return page.redirect("/sign-in", "flash.password_changed")
