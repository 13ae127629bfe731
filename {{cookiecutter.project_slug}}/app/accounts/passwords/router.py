from app.accounts.dependencies import CurrentCaller
from app.accounts.passwords import service
from app.accounts.passwords.schemas import PasswordChange
from app.core.exceptions import problem_responses
from app.core.routing import FeatureRouter
from app.core.toolbox import ToolboxDep

router = FeatureRouter(prefix="/users", tags=["users"])


@router.post("/me/password", status_code=204, responses=problem_responses(401, 403, 409, 429))
async def change_password(data: PasswordChange, caller: CurrentCaller, tools: ToolboxDep) -> None:
    """Change the password and end every other session."""
    await service.change_password(tools, caller, data)
