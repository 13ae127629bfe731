import time
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import OAuth2PasswordBearer, SecurityScopes

from app.accounts.identity_cache import IdentityCache
from app.accounts.models import Caller, UserRecord
from app.accounts.scopes import SCOPES, Scope, parse_scope
from app.core.database import SAFE_METHODS
from app.core.exceptions import ForbiddenError, InsufficientScopeError, UnauthorizedError
from app.core.security import AccessClaims
from app.core.security import Security as TokenSecurity

# After a request body that took longer, the caller is looked up again.
MAX_BODY_SECONDS = 1


class AccessTokenBearer(OAuth2PasswordBearer):
    """Bearer access tokens; FeatureRoute authenticates with them before it reads a body."""

    async def authenticate(self, request: Request) -> None:
        token = await self(request)
        # OAuth2PasswordBearer never returns None here: it raises for a missing token.
        request.state.caller = await _find_caller(request, await get_claims(request, token or ""))
        request.state.caller_found_at = time.monotonic()


# Relative URLs; app/core/openapi.py puts API_PREFIX before them.
oauth2_scheme = AccessTokenBearer(
    tokenUrl="auth/token",
    refreshUrl="auth/token",
    scheme_name="OAuth2PasswordBearer",
    scopes={scope.value: text for scope, text in SCOPES.items()},
)

TokenDep = Annotated[str, Depends(oauth2_scheme)]


async def get_claims(request: Request, token: TokenDep) -> AccessClaims:
    # Read from request.state here and below: resolving a dependency would cost more than the lookup.
    security: TokenSecurity = request.state.security
    return security.read_access_token(token)


ClaimsDep = Annotated[AccessClaims, Depends(get_claims)]


async def get_caller(request: Request, required: SecurityScopes, claims: ClaimsDep) -> Caller:
    """Check the token, its session and its user at each request, so that an ended session is refused at once.

    With AUTH_CACHE_SECONDS, safe requests may use the result of an earlier check.
    """
    # In most routes, oauth2_scheme.authenticate has set it before the body was read.
    caller: Caller | None = getattr(request.state, "caller", None)
    if caller is None or (request.method not in SAFE_METHODS and _is_old(request)):
        caller = await _find_caller(request, claims)
    require_scopes(claims, *required.scopes)
    return caller


def _is_old(request: Request) -> bool:
    """Whether the session may have ended since then, while a slow body arrived."""
    found_at: float = request.state.caller_found_at
    return time.monotonic() - found_at > MAX_BODY_SECONDS


async def _find_caller(request: Request, claims: AccessClaims) -> Caller:
    cache: IdentityCache = request.state.identity_cache
    find = cache.get if request.method in SAFE_METHODS else cache.refresh
    caller = await find(request.state.database, claims.sub, claims.sid)
    if caller is None:
        raise UnauthorizedError("The session has ended. Sign in again.", code="session-ended")
    # For the audit events of refused requests.
    request.state.actor_id = caller.user.id
    return caller


async def get_current_user(request: Request, required: SecurityScopes, claims: ClaimsDep) -> UserRecord:
    # Called and not depended on: that would cost every request one dependency more.
    return (await get_caller(request, required, claims)).user


CurrentUser = Annotated[UserRecord, Security(get_current_user, scopes=[Scope.ACCOUNT])]
# For the routes that need the session as well.
CurrentCaller = Annotated[Caller, Security(get_caller, scopes=[Scope.ACCOUNT])]


async def get_admin(user: Annotated[UserRecord, Security(get_current_user)]) -> UserRecord:
    return require_admin(user)


AdminUser = Annotated[UserRecord, Security(get_admin, scopes=[Scope.ADMIN])]


def require_admin(user: UserRecord) -> UserRecord:
    if not user.is_admin:
        raise ForbiddenError("Only administrators are allowed to do this.", code="administrators-only")
    return user


def require_scopes(claims: AccessClaims, *scopes: str) -> None:
    if not parse_scope(claims.scope).issuperset(scopes):
        raise InsufficientScopeError(" ".join(scopes))
