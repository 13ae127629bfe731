from typing import Annotated
from uuid import UUID

from fastapi import Depends, Request, Security
from fastapi.security import OAuth2PasswordBearer, SecurityScopes

from app.core.database import SAFE_METHODS, SessionDep
from app.core.exceptions import ForbiddenError, InsufficientScopeError, UnauthorizedError
from app.core.requests import OriginDep, SettingsDep
from app.core.security import AccessClaims
from app.core.security import Security as TokenSecurity
from app.core.throttling import AttemptCounter, GuessThrottleDep, network_of
from app.users import service
from app.users.callers import RecentCallers
from app.users.scopes import SCOPES, Scope, parse_scope
from app.users.service import UserRow

# The address in the OpenAPI document; app/application.py completes it with API_PREFIX.
oauth2_scheme = OAuth2PasswordBearer(
    tokenUrl="auth/token", refreshUrl="auth/token", scopes={scope.value: text for scope, text in SCOPES.items()}
)

TokenDep = Annotated[str, Depends(oauth2_scheme)]


async def get_claims(request: Request, token: TokenDep) -> AccessClaims:
    # Out of the state, here and below: a dependency costs as much as what it would bring.
    security: TokenSecurity = request.state.security
    return security.read_access_token(token)


ClaimsDep = Annotated[AccessClaims, Depends(get_claims)]


async def get_caller(request: Request, required: SecurityScopes, claims: ClaimsDep) -> UserRow:
    """Check the token, its session and its user at each request: what was ended is out at the next call.

    With AUTH_CACHE_SECONDS, what only reads may believe a check that is no older.
    """
    callers: RecentCallers = request.state.callers
    find = callers.find if request.method in SAFE_METHODS else callers.find_again
    user = await find(request.state.database, claims.sub, claims.sid)
    if user is None:
        raise UnauthorizedError("The session has ended.")
    _require_scopes(claims, *required.scopes)
    return user


CurrentUser = Annotated[UserRow, Security(get_caller, scopes=[Scope.ACCOUNT])]


async def get_admin(user: Annotated[UserRow, Security(get_caller)]) -> UserRow:
    return _require_admin(user)


AdminUser = Annotated[UserRow, Security(get_admin, scopes=[Scope.ADMIN])]


def _require_admin(user: UserRow) -> UserRow:
    if not user.is_admin:
        raise ForbiddenError("Only administrators may do this.")
    return user


def _require_scopes(claims: AccessClaims, *scopes: str) -> None:
    if not parse_scope(claims.scope).issuperset(scopes):
        raise InsufficientScopeError(" ".join(scopes))


async def require_open_registration(settings: SettingsDep) -> None:
    if not settings.registration_open:
        raise ForbiddenError("Sign-up is closed.")


async def limit_sign_ups(settings: SettingsDep, throttle: GuessThrottleDep, origin: OriginDep) -> None:
    counter = AttemptCounter("sign-up from address", network_of(origin.address), settings.throttle_address_attempts)
    await throttle.count(counter)


async def get_any_user(user_id: UUID, _admin: AdminUser, session: SessionDep) -> UserRow:
    return await service.get_user(session, user_id)


async def get_visible_user(user_id: UUID, claims: ClaimsDep, caller: CurrentUser, session: SessionDep) -> UserRow:
    """Administrators see everybody, others themselves; the refusal does not tell whether there is such a user."""
    if caller.id == user_id:
        return caller
    _require_admin(caller)
    _require_scopes(claims, Scope.ADMIN)
    return await service.get_user(session, user_id)


AnyUserDep = Annotated[UserRow, Depends(get_any_user)]
VisibleUserDep = Annotated[UserRow, Depends(get_visible_user)]
