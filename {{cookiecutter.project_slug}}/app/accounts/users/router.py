from app.accounts.confirmations import ConfirmationDep, ConfirmedCaller
from app.accounts.dependencies import AdminUser, CurrentUser
from app.accounts.models import UserRecord
from app.accounts.users import service
from app.accounts.users.dependencies import AnyUserDep, VisibleUserDep
from app.accounts.users.schemas import UserAdminUpdate, UserRead, UserUpdate
from app.core.context import ContextDep
from app.core.dependencies import SessionDep
from app.core.http.pagination import Page, PageDep, PageResult
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter

router = FeatureRouter(prefix="/users", tags=["users"])


@router.get("/me", response_model=UserRead, responses=problem_responses(401, 403))
async def read_me(user: CurrentUser) -> UserRecord:
    return user


@router.patch("/me", response_model=UserRead, responses=problem_responses(401, 403, 429))
async def update_me(data: UserUpdate, user: CurrentUser, ctx: ContextDep) -> UserRecord:
    return await service.update_user(ctx, user, data, actor_id=user.id)


@router.delete("/me", status_code=204, responses=problem_responses(401, 403, 409))
async def delete_me(caller: ConfirmedCaller, ctx: ContextDep) -> None:
    """Delete your account and all its data. Requires `X-Confirmation`. The last administrator cannot be deleted."""
    await service.delete_user(ctx, caller.user, actor_id=caller.user.id)


@router.get("", response_model=Page[UserRead], responses=problem_responses(401, 403))
async def list_users(_admin: AdminUser, session: SessionDep, page: PageDep) -> PageResult[UserRecord]:
    """List all accounts, newest first. For administrators."""
    return await service.list_users(session, page)


@router.get("/{user_id}", response_model=UserRead, responses=problem_responses(401, 403, 404))
async def read_user(user: VisibleUserDep) -> UserRecord:
    """Read your own account or, as an administrator, any account."""
    return user


@router.patch("/{user_id}", response_model=UserRead, responses=problem_responses(401, 403, 404, 409, 429))
async def update_user(
    data: UserAdminUpdate, user: AnyUserDep, admin: AdminUser, confirmation: ConfirmationDep, ctx: ContextDep
) -> UserRecord:
    """Change any account. Deactivation ends the account's sessions. For administrators.

    A change of any field except `name` requires the header `X-Confirmation`.
    """
    if service.is_sensitive(user, data):
        await confirmation.require()
    return await service.update_user(ctx, user, data, actor_id=admin.id)


@router.delete("/{user_id}", status_code=204, responses=problem_responses(401, 403, 404, 409))
async def delete_user(user: AnyUserDep, admin: AdminUser, _confirmed: ConfirmedCaller, ctx: ContextDep) -> None:
    """Delete any account except the last administrator's. Requires `X-Confirmation`. For administrators."""
    await service.delete_user(ctx, user, actor_id=admin.id)
