from fastapi import Depends, Request, Response

from app.accounts.models import UserRecord
from app.accounts.sign_up import service
from app.accounts.sign_up.dependencies import require_open_registration
from app.accounts.users.schemas import UserCreate, UserRead
from app.core.context import ContextDep
from app.core.dependencies import reserve_hash
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter

router = FeatureRouter(prefix="/users", tags=["users"])


@router.post(
    "",
    status_code=201,
    response_model=UserRead,
    responses={
        **problem_responses(403, 409, 429),
        202: {"description": "A message is sent, unless the address already got too many messages.", "model": None},
    },
    dependencies=[Depends(require_open_registration), reserve_hash],
)
async def create_user(data: UserCreate, ctx: ContextDep, request: Request, response: Response) -> UserRecord | Response:
    """Sign up. If addresses must be verified, the response is 202 whether or not the address has an account."""
    user = await service.sign_up(ctx, data)
    if user is None:
        return Response(status_code=202)
    response.headers["Location"] = f"{request.scope['path']}/{user.id}"
    return user
