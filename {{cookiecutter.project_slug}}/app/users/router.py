from fastapi import Depends, Request, Response

from app.core.database import SessionDep
from app.core.email import MailDep
from app.core.exceptions import problem_responses
from app.core.pagination import Page, PageDep, PageResult
from app.core.routing import FeatureRouter
from app.core.toolbox import ToolboxDep
from app.users import service
from app.users.dependencies import (
    AdminUser,
    AnyUserDep,
    CurrentCaller,
    CurrentUser,
    VisibleUserDep,
    limit_sign_ups,
    require_open_registration,
)
from app.users.models import UserRecord
from app.users.schemas import EmailChange, PasswordChange, UserAdminUpdate, UserCreate, UserRead, UserUpdate

router = FeatureRouter(prefix="/users", tags=["users"])


@router.post(
    "",
    status_code=201,
    response_model=UserRead,
    responses={**problem_responses(403, 409, 429), 202: {"description": "See your mail.", "model": None}},
    dependencies=[Depends(require_open_registration), Depends(limit_sign_ups)],
)
async def create_user(
    data: UserCreate, tools: ToolboxDep, request: Request, response: Response
) -> UserRecord | Response:
    """Sign up. Where addresses have to be verified the answer is 202, whether or not there was an account before."""
    user = await service.sign_up(tools, data)
    if user is None:
        return Response(status_code=202)
    response.headers["Location"] = request.app.url_path_for("read_user", user_id=user.id)
    return user


@router.get("/me", response_model=UserRead, responses=problem_responses(401, 403))
async def read_me(user: CurrentUser) -> UserRecord:
    return user


@router.patch("/me", response_model=UserRead, responses=problem_responses(401, 403))
async def update_me(data: UserUpdate, user: CurrentUser, tools: ToolboxDep) -> UserRecord:
    return await service.update_user(tools, user, data, actor_id=user.id)


@router.delete("/me", status_code=204, responses=problem_responses(401, 403, 409))
async def delete_me(user: CurrentUser, tools: ToolboxDep) -> None:
    """Delete the account and everything that belongs to it; the last administrator's stays."""
    await service.delete_user(tools, user, actor_id=user.id)


@router.post("/me/password", status_code=204, responses=problem_responses(401, 403, 409, 429))
async def change_password(data: PasswordChange, caller: CurrentCaller, tools: ToolboxDep) -> None:
    """Change the password and end every other session."""
    await service.change_password(tools, caller, data)


@router.post(
    "/me/email",
    status_code=202,
    response_class=Response,
    responses=problem_responses(401, 403, 409, 429),
)
async def change_email(data: EmailChange, user: CurrentUser, _mail: MailDep, tools: ToolboxDep) -> None:
    """Ask for another address; it is the account's once the code that is sent there has come back."""
    await service.request_email_change(tools, user, data)


@router.get("", response_model=Page[UserRead], responses=problem_responses(401, 403))
async def list_users(_admin: AdminUser, session: SessionDep, page: PageDep) -> PageResult[UserRecord]:
    """List all accounts, the newest first. For administrators."""
    return await service.list_users(session, page)


@router.get("/{user_id}", response_model=UserRead, responses=problem_responses(401, 403, 404))
async def read_user(user: VisibleUserDep) -> UserRecord:
    """Read one's own account or, for administrators, any."""
    return user


@router.patch("/{user_id}", response_model=UserRead, responses=problem_responses(401, 403, 404, 409))
async def update_user(data: UserAdminUpdate, user: AnyUserDep, admin: AdminUser, tools: ToolboxDep) -> UserRecord:
    """Change any account; deactivating one ends its sessions. For administrators."""
    return await service.update_user(tools, user, data, actor_id=admin.id)


@router.delete("/{user_id}", status_code=204, responses=problem_responses(401, 403, 404, 409))
async def delete_user(user: AnyUserDep, admin: AdminUser, tools: ToolboxDep) -> None:
    """For administrators; the last of them stays."""
    await service.delete_user(tools, user, actor_id=admin.id)
