from app.accounts.confirmations import LIFETIME, create_confirmation
from app.accounts.dependencies import CurrentCaller
from app.accounts.passwords import service
from app.accounts.passwords.schemas import ConfirmationRead, PasswordChange
from app.accounts.second_factor.confirmation import confirm_identity
from app.accounts.second_factor.schemas import PasswordConfirmation
from app.core.exceptions import problem_responses
from app.core.routing import FeatureRouter
from app.core.toolbox import ToolboxDep

router = FeatureRouter(prefix="/users", tags=["users"])
confirmation = FeatureRouter(prefix="/auth/confirmation", tags=["auth"])


@router.post("/me/password", status_code=204, responses=problem_responses(401, 403, 409, 429))
async def change_password(data: PasswordChange, caller: CurrentCaller, tools: ToolboxDep) -> None:
    """Change the password and end every other session."""
    await service.change_password(tools, caller, data)


@confirmation.post("", status_code=201, responses=problem_responses(401, 403, 429))
async def confirm(data: PasswordConfirmation, caller: CurrentCaller, tools: ToolboxDep) -> ConfirmationRead:
    """Show that it is the owner: the code goes into the header `X-Confirmation` of one request that asks for it."""
    await confirm_identity(tools, caller, data)
    code = await create_confirmation(tools.session, caller)
    return ConfirmationRead(confirmation=code, expires_in=int(LIFETIME.total_seconds()))
