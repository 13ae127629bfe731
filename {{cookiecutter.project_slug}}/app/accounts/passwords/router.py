from fastapi import Response

from app.accounts.confirmations import LIFETIME, create_confirmation
from app.accounts.dependencies import CurrentCaller
from app.accounts.passwords import service
from app.accounts.passwords.schemas import ConfirmationRead, PasswordChange
from app.accounts.second_factor.confirmation import confirm_identity
from app.accounts.second_factor.schemas import PasswordConfirmation
from app.accounts.sign_in.exceptions import NO_STORE
from app.accounts.sign_in.refresh_tokens import issue
from app.accounts.sign_in.schemas import TokenRead
from app.core.context import ContextDep
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter

router = FeatureRouter(prefix="/me", tags=["users"])
confirmation = FeatureRouter(prefix="/confirmation", tags=["auth"])


@router.post("/password", responses=problem_responses(401, 403, 409, 429))
async def change_password(
    data: PasswordChange, caller: CurrentCaller, ctx: ContextDep, response: Response
) -> TokenRead:
    """Change the password, end all sessions, and return tokens of a new session with the same scope."""
    opened = await service.change_password(ctx, caller, data)
    response.headers.update(NO_STORE)
    return await issue(ctx, opened.user_id, opened.session_id, opened.scope)


@confirmation.post("", status_code=201, responses=problem_responses(401, 403, 429))
async def confirm(
    data: PasswordConfirmation, caller: CurrentCaller, ctx: ContextDep, response: Response
) -> ConfirmationRead:
    """Get a code that confirms one request, in exchange for the password and, if there is one, the second factor.

    Send the code in the header `X-Confirmation` of a request that requires this header, in the same session.
    """
    await confirm_identity(ctx, caller, data)
    response.headers.update(NO_STORE)
    code = await create_confirmation(ctx.session, caller)
    return ConfirmationRead(confirmation=code, expires_in=int(LIFETIME.total_seconds()))
