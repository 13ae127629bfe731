"""Decide which of the requested scopes a session gets."""

from uuid import UUID

from app.accounts.scopes import Scope, format_scope, list_allowed, parse_scope
from app.accounts.second_factor import codes
from app.accounts.second_factor.codes import Factors
from app.accounts.sign_in.exceptions import OAuthError
from app.core.config.settings import Settings
from app.core.context import Context

SCOPE_NOT_ALLOWED = (
    "The account may not have the requested scope. Request another scope, or omit the scope to get all scopes that the"
    " account may have."
)


def list_allowed_scopes(settings: Settings, factors: Factors | None, *, is_admin: bool) -> frozenset[str]:
    return list_allowed(is_admin=is_admin and (factors is not None or not settings.admin_second_factor_required))


def grant_scope(requested: str, allowed: frozenset[str]) -> str:
    """Return the requested scopes, or all allowed ones if none is requested. Raises OAuthError."""
    scopes = parse_scope(requested) or allowed
    if not scopes <= allowed:
        raise OAuthError("invalid_scope", SCOPE_NOT_ALLOWED, code="scope-not-allowed")
    return format_scope(scopes)


async def narrow_scope(ctx: Context, user_id: UUID, scope: str) -> frozenset[str]:
    """Return the scopes, without `admin` if this scope requires a second factor and the account has none."""
    allowed = parse_scope(scope)
    if ctx.settings.admin_second_factor_required and Scope.ADMIN in allowed:
        factors = await codes.find_factors(ctx.session, user_id)
        allowed &= list_allowed_scopes(ctx.settings, factors, is_admin=True)
    return allowed
