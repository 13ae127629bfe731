from typing import Annotated, Any

from fastapi import Form

from app.accounts.sign_in import refresh_tokens, service
from app.accounts.sign_in.oauth import OAuthRoute
from app.accounts.sign_in.schemas import OAuthProblem, RevocationForm, TokenForm, TokenRead
from app.core.context import ContextDep
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter

router = FeatureRouter(tags=["auth"], route_class=OAuthRoute)

OAUTH_ERROR: dict[int | str, dict[str, Any]] = {400: {"model": OAuthProblem, "description": "RFC 6749 §5.2"}}


@router.post("/token", responses={**OAUTH_ERROR, **problem_responses(429)})
async def create_token(form: Annotated[TokenForm, Form()], ctx: ContextDep) -> TokenRead:
    """Sign in, or exchange a refresh token for new tokens (OAuth 2.0, RFC 6749)."""
    return await service.create_token(ctx, form)


@router.post("/revoke", responses=OAUTH_ERROR)
async def revoke_token(form: Annotated[RevocationForm, Form()], ctx: ContextDep) -> None:
    """Sign out: end the session of an access or a refresh token (RFC 7009)."""
    await refresh_tokens.revoke(ctx, form.token)
