"""Account recovery by e-mail: verify an address, change it, set a forgotten password.

Requests for messages get the same answer in the same time for every address: the account is looked up when the message
is rendered.
"""

from fastapi import Response

from app.accounts.dependencies import CurrentCaller
from app.accounts.recovery import service
from app.accounts.recovery.schemas import EmailChange, EmailRequest, EmailVerification, PasswordReset
from app.core.context import ContextDep
from app.core.dependencies import MailDep, require_mail, reserve_hash
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter

router = FeatureRouter(tags=["auth"])
address = FeatureRouter(prefix="/me", tags=["users"])


@router.post(
    "/email/verification",
    status_code=202,
    response_class=Response,
    responses=problem_responses(429),
    dependencies=[require_mail],
)
async def request_email_verification(data: EmailRequest, ctx: ContextDep) -> None:
    """Send another message with a code that verifies the address, if it has an account and is not verified."""
    await service.request_verification(ctx, data.email)


@router.post("/email/verify", status_code=204, responses=problem_responses(409, 429), dependencies=[reserve_hash])
async def verify_email(data: EmailVerification, ctx: ContextDep) -> None:
    """Verify an e-mail address, or confirm a new one, with the code from the e-mail and the password.

    For a code from the message of a sign-up, send the password of this sign-up; for any other code, the password of
    the account. Without a password, the owner of an address who follows the link would confirm an account that a
    stranger has created with this address.
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
    """Send a code for a new password, if the address has an account."""
    await service.request_password_reset(ctx, data.email)


@router.post("/password/reset", status_code=204, responses=problem_responses(429), dependencies=[reserve_hash])
async def reset_password(data: PasswordReset, ctx: ContextDep) -> None:
    """Set a new password with the code from the e-mail, and end all sessions."""
    await service.reset_password(ctx, data.token, data.new_password.get_secret_value())


@address.post(
    "/email",
    status_code=202,
    response_class=Response,
    responses=problem_responses(401, 403, 409, 429),
)
async def change_email(data: EmailChange, caller: CurrentCaller, _mail: MailDep, ctx: ContextDep) -> None:
    """Request a new e-mail address, to which a code is sent. `/auth/email/verify` with the code changes the address."""
    await service.request_email_change(ctx, caller, data)
