from app.accounts.dependencies import CurrentCaller
from app.accounts.second_factor import service
from app.accounts.second_factor.schemas import PasswordConfirmation, RecoveryCodes, SecondFactorCode, SecondFactorSecret
from app.core.context import ContextDep
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter

router = FeatureRouter(prefix="/second-factor", tags=["auth"])


@router.post("", responses=problem_responses(401, 403, 409, 422, 429))
async def begin_second_factor(data: PasswordConfirmation, caller: CurrentCaller, ctx: ContextDep) -> SecondFactorSecret:
    """Get a secret for an authenticator app. `/auth/second-factor/confirm` activates the app with a code from it."""
    return await service.begin(ctx, caller, data)


@router.post("/confirm", responses=problem_responses(401, 403, 409, 422, 429))
async def confirm_second_factor(data: SecondFactorCode, caller: CurrentCaller, ctx: ContextDep) -> RecoveryCodes:
    """Activate the authenticator app. Returns recovery codes, unless adding a passkey has already returned some."""
    return await service.confirm(ctx, caller, data)


@router.post("/disable", status_code=204, responses=problem_responses(401, 403, 409, 422, 429))
async def disable_second_factor(data: PasswordConfirmation, caller: CurrentCaller, ctx: ContextDep) -> None:
    """Remove the authenticator app. Passkeys stay; the recovery codes are deleted with the last second factor."""
    await service.disable(ctx, caller, data)
