"""Accounts by mail: verify an address, set a forgotten password.

Whoever asks for a message gets the same answer in the same time, for the address is looked up when the message is made.
"""

from fastapi import Response

from app.auth.dependencies import limit_codes
from app.auth.schemas import EmailAddress, EmailToken, PasswordReset
from app.core.email import require_mail
from app.core.exceptions import problem_responses
from app.core.routing import FeatureRouter
from app.core.toolbox import ToolboxDep
from app.outbox import service as outbox_service
from app.users import service as users_service
from app.users.emails import EmailKind, limit_messages

router = FeatureRouter()


@router.post(
    "/email/verification",
    status_code=202,
    response_class=Response,
    responses=problem_responses(429),
    dependencies=[require_mail],
)
async def request_email_verification(data: EmailAddress, tools: ToolboxDep) -> None:
    """Send the message again that verifies an address."""
    await limit_messages(tools, EmailKind.VERIFICATION, data.email)
    await outbox_service.enqueue(tools.session, EmailKind.VERIFICATION, data.email)


@router.post("/email/verify", status_code=204, responses=problem_responses(409, 429), dependencies=[limit_codes])
async def verify_email(data: EmailToken, tools: ToolboxDep) -> None:
    """Verify an address, or confirm a new one, with the code that was sent there."""
    await users_service.verify_email(tools, data.token)


@router.post(
    "/password/forgot",
    status_code=202,
    response_class=Response,
    responses=problem_responses(429),
    dependencies=[require_mail],
)
async def forgot_password(data: EmailAddress, tools: ToolboxDep) -> None:
    """Send a code that sets a new password, if there is an account with this address."""
    await limit_messages(tools, EmailKind.PASSWORD_RESET, data.email)
    await outbox_service.enqueue(tools.session, EmailKind.PASSWORD_RESET, data.email)


@router.post("/password/reset", status_code=204, responses=problem_responses(429), dependencies=[limit_codes])
async def reset_password(data: PasswordReset, tools: ToolboxDep) -> None:
    """Set a new password with the code that was sent, and end every session."""
    await users_service.reset_password(tools, data.token, data.new_password.get_secret_value())
