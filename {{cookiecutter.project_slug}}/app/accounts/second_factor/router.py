from app.accounts.dependencies import CurrentCaller
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
    """Start enrolling an authenticator app; confirm a code to activate it."""
    return await service.begin(tools, caller, data)


@router.post("/confirm", responses=problem_responses(401, 403, 409, 422, 429))
async def confirm_second_factor(data: SecondFactorCode, caller: CurrentCaller, tools: ToolboxDep) -> RecoveryCodes:
    """Activate the authenticator app. Returns recovery codes, unless the account has some from a passkey."""
    return await service.confirm(tools, caller, data)


@router.post("/disable", status_code=204, responses=problem_responses(401, 403, 409, 422, 429))
async def disable_second_factor(data: PasswordConfirmation, caller: CurrentCaller, tools: ToolboxDep) -> None:
    """Remove the authenticator app. Passkeys stay; the recovery codes are deleted with the last second factor."""
    await service.disable(tools, caller, data)
