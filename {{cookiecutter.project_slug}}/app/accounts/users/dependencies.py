from typing import Annotated
from uuid import UUID

from fastapi import Depends

from app.accounts.dependencies import AdminUser, ClaimsDep, CurrentUser, require_admin, require_scopes
from app.accounts.models import UserRecord
from app.accounts.queries import get_user
from app.accounts.scopes import Scope
from app.core.dependencies import SessionDep


async def get_any_user(user_id: UUID, _admin: AdminUser, session: SessionDep) -> UserRecord:
    return await get_user(session, user_id)


async def get_visible_user(user_id: UUID, claims: ClaimsDep, caller: CurrentUser, session: SessionDep) -> UserRecord:
    """Return the user if the caller is this user or an administrator.

    Others get the same refusal whether or not the user exists.
    """
    if caller.id == user_id:
        return caller
    require_admin(caller)
    require_scopes(claims, Scope.ADMIN)
    return await get_user(session, user_id)


AnyUserDep = Annotated[UserRecord, Depends(get_any_user)]
VisibleUserDep = Annotated[UserRecord, Depends(get_visible_user)]
