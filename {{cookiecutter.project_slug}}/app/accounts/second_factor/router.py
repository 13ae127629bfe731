from app.accounts.dependencies import CurrentCaller, CurrentUser
from app.accounts.second_factor import service
from app.accounts.second_factor.schemas import PasswordConfirmation, RecoveryCodes, SecondFactorCode, SecondFactorSecret
from app.core.exceptions import problem_responses
from app.core.routing import FeatureRouter
from app.core.toolbox import ToolboxDep

router = FeatureRouter(prefix="/auth/second-factor", tags=["auth"])


@router.post("", responses=problem_responses(401, 403, 409, 422, 429))
async def begin_second_factor(
    data: PasswordConfirmation, caller: CurrentCaller, tools: ToolboxDep
) -> SecondFactorSecret:
    """Make a secret for an authenticator app; it is asked for once a code of it was confirmed."""
    return await service.begin(tools, caller, data)


@router.post("/confirm", responses=problem_responses(401, 403, 409, 422, 429))
async def confirm_second_factor(data: SecondFactorCode, user: CurrentUser, tools: ToolboxDep) -> RecoveryCodes:
    """Ask for a second factor from now on, and get the recovery codes, which are shown this once."""
    return await service.confirm(tools, user, data)


@router.post("/disable", status_code=204, responses=problem_responses(401, 403, 409, 422, 429))
async def disable_second_factor(data: PasswordConfirmation, caller: CurrentCaller, tools: ToolboxDep) -> None:
    """No longer ask for a second factor; the recovery codes are gone, too."""
    await service.disable(tools, caller, data)
