import time
from typing import Annotated, NotRequired, cast

from fastapi import Depends, Request, Security
from fastapi.security import OAuth2PasswordBearer, SecurityScopes

from app.accounts.identity_cache import IdentityCache
from app.accounts.models import Caller, UserRecord
from app.accounts.scopes import SCOPES, Scope, parse_scope
from app.core.errors import ForbiddenError, InsufficientScopeError, UnauthorizedError
from app.core.http.request import SAFE_METHODS, State
from app.core.security.tokens import AccessClaims

# If the body of a request with an unsafe method, such as POST, takes longer than this to arrive, the caller is looked
# up again.
MAX_BODY_SECONDS = 1


class AccountsState(State):
    identity_cache: IdentityCache
    # The caller, and when it was found in the database or the cache (`time.monotonic()`).
    caller: NotRequired[Caller]
    caller_found_at: NotRequired[float]


class AccountsRequest(Request[AccountsState]):
    """A request with the typed state of this feature."""


class AccessTokenBearer(OAuth2PasswordBearer):
    """Bearer access tokens; FeatureRoute authenticates with them before it reads a body."""

    async def authenticate(self, request: Request) -> None:
        token = await self(request)
        authenticated = cast(AccountsRequest, request)
        # OAuth2PasswordBearer never returns None here: it raises for a missing token.
        claims = await get_claims(authenticated, token or "")
        authenticated.state["caller"] = await _find_caller(authenticated, claims)
        authenticated.state["caller_found_at"] = time.monotonic()


# Relative URLs; app/core/http/openapi.py puts API_PREFIX before them.
oauth2_scheme = AccessTokenBearer(
    tokenUrl="auth/token",
    refreshUrl="auth/token",
    scheme_name="OAuth2PasswordBearer",
    scopes={scope.value: text for scope, text in SCOPES.items()},
)

TokenDep = Annotated[str, Depends(oauth2_scheme)]


async def get_claims(request: AccountsRequest, token: TokenDep) -> AccessClaims:
    # Here and below, resources are read from `request.state`, because resolving a dependency takes longer.
    return request.state["tokens"].verify(token)


ClaimsDep = Annotated[AccessClaims, Depends(get_claims)]


async def get_caller(request: AccountsRequest, required: SecurityScopes, claims: ClaimsDep) -> Caller:
    """Check the token, its session and its user at each request, so that an ended session is refused at once.

    The exception is AUTH_CACHE_SECONDS: for this time, requests with a safe method, such as GET, may use the result of
    an earlier check.
    """
    # In most routes, oauth2_scheme.authenticate has stored the caller before the body was read.
    caller = request.state["caller"] if "caller" in request.state else None  # noqa: SIM401  # Starlette's State has no `get`
    if caller is None or (request.method not in SAFE_METHODS and _is_old(request)):
        caller = await _find_caller(request, claims)
    require_scopes(claims, *required.scopes)
    return caller


def _is_old(request: AccountsRequest) -> bool:
    """Return whether the body arrived so slowly that the session may have ended since the caller was found."""
    return time.monotonic() - request.state["caller_found_at"] > MAX_BODY_SECONDS


async def _find_caller(request: AccountsRequest, claims: AccessClaims) -> Caller:
    cache = request.state["identity_cache"]
    find = cache.get if request.method in SAFE_METHODS else cache.refresh
    caller = await find(request.state["database"], claims.sub, claims.sid)
    if caller is None:
        raise UnauthorizedError("The session has ended. Sign in again.", code="session-ended")
    # `record_refusals` writes this id to the audit event of a refused request.
    request.state["actor_id"] = caller.user.id
    return caller


async def get_current_user(request: AccountsRequest, required: SecurityScopes, claims: ClaimsDep) -> UserRecord:
    # Call `get_caller` directly: otherwise, FastAPI would resolve one more dependency for each request.
    return (await get_caller(request, required, claims)).user


CurrentUser = Annotated[UserRecord, Security(get_current_user, scopes=[Scope.ACCOUNT])]
# For routes that also need the ID of the caller's session.
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
