"""Accounts by mail: verify an address, set a forgotten password.

Whoever asks for a message gets the same answer in the same time, for the address is looked up when the message is made.
"""

from fastapi import Response

from app.accounts.dependencies import CurrentCaller
from app.accounts.emails import EmailKind, limit_messages
from app.accounts.recovery import service
from app.accounts.recovery.dependencies import limit_codes
from app.accounts.recovery.schemas import EmailChange, EmailRequest, EmailVerification, PasswordReset
from app.core.context import ContextDep
from app.core.dependencies import MailDep, require_mail, reserve_hash
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter
from app.outbox import service as outbox_service

router = FeatureRouter(prefix="/auth", tags=["auth"])
address = FeatureRouter(prefix="/users", tags=["users"])


@router.post(
    "/email/verification",
    status_code=202,
    response_class=Response,
    responses=problem_responses(429),
    dependencies=[require_mail],
)
async def request_email_verification(data: EmailRequest, ctx: ContextDep) -> None:
    """Send the message again that verifies an address."""
    await limit_messages(ctx, EmailKind.VERIFICATION, data.email)
    await outbox_service.enqueue(ctx.session, EmailKind.VERIFICATION, data.email)


@router.post(
    "/email/verify", status_code=204, responses=problem_responses(409, 429), dependencies=[reserve_hash, limit_codes]
)
async def verify_email(data: EmailVerification, ctx: ContextDep) -> None:
    """Verify an address, or confirm a new one, with the code that was sent there.

    It also takes the password of the sign-up or the account: without it, the mere click of somebody whose address a
    stranger has entered would verify it for the stranger's account.
    """
    await service.verify_email(ctx, data)


@router.post(
    "/password/forgot",
    status_code=202,
    response_class=Response,
    responses=problem_responses(429),
    dependencies=[require_mail],
)
async def forgot_password(data: EmailRequest, ctx: ContextDep) -> None:
    """Send a code that sets a new password, if there is an account with this address."""
    await limit_messages(ctx, EmailKind.PASSWORD_RESET, data.email)
    await outbox_service.enqueue(ctx.session, EmailKind.PASSWORD_RESET, data.email)


@router.post(
    "/password/reset", status_code=204, responses=problem_responses(429), dependencies=[reserve_hash, limit_codes]
)
async def reset_password(data: PasswordReset, ctx: ContextDep) -> None:
    """Set a new password with the code that was sent, and end every session."""
    await service.reset_password(ctx, data.token, data.new_password.get_secret_value())


@address.post(
    "/me/email",
    status_code=202,
    response_class=Response,
    responses=problem_responses(401, 403, 409, 429),
)
async def change_email(data: EmailChange, caller: CurrentCaller, _mail: MailDep, ctx: ContextDep) -> None:
    """Ask for another address; it is the account's once the code that is sent there has come back."""
    await service.request_email_change(ctx, caller, data)
