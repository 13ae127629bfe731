from typing import Annotated, Any

from fastapi import Form

from app.auth import recovery, second_factor, service, sessions
from app.auth.dependencies import OwnSessionDep
from app.auth.oauth import OAuthRoute
from app.auth.schemas import (
    OAuthProblem,
    PasswordConfirmation,
    RecoveryCodes,
    RevocationForm,
    SecondFactorCode,
    SecondFactorSecret,
    SessionRead,
    TokenForm,
    TokenRead,
)
from app.auth.sessions import SessionRecord
from app.core.database import SessionDep
from app.core.exceptions import problem_responses
from app.core.routing import FeatureRouter
from app.core.toolbox import ToolboxDep
from app.users.dependencies import CurrentCaller, CurrentUser

router = FeatureRouter(prefix="/auth", tags=["auth"])
oauth = FeatureRouter(route_class=OAuthRoute)

OAUTH_ERROR: dict[int | str, dict[str, Any]] = {400: {"model": OAuthProblem, "description": "RFC 6749 §5.2"}}


@oauth.post("/token", responses={**OAUTH_ERROR, **problem_responses(429)})
async def create_token(form: Annotated[TokenForm, Form()], tools: ToolboxDep) -> TokenRead:
    """Sign in, or exchange a refresh token for new tokens (OAuth 2.0, RFC 6749)."""
    return await service.create_token(tools, form)


@oauth.post("/revoke", responses=OAUTH_ERROR)
async def revoke_token(form: Annotated[RevocationForm, Form()], tools: ToolboxDep) -> None:
    """Sign out: end the session of an access or a refresh token (RFC 7009)."""
    await service.revoke(tools, form.token)


router.include_router(oauth)
router.include_router(recovery.router)


@router.get("/sessions", response_model=list[SessionRead], responses=problem_responses(401, 403))
async def list_sessions(caller: CurrentCaller, session: SessionDep) -> list[SessionRecord]:
    """List where the account is signed in, the most recently used first."""
    return await sessions.list_sessions(session, caller)


@router.delete("/sessions/{session_id}", status_code=204, responses=problem_responses(401, 403, 404))
async def end_session(own_session: OwnSessionDep, tools: ToolboxDep) -> None:
    """Sign out somewhere else, or here."""
    await sessions.end_session(tools.session, tools.audit, own_session.id)


@router.post("/second-factor", responses=problem_responses(401, 403, 409, 422, 429))
async def begin_second_factor(data: PasswordConfirmation, user: CurrentUser, tools: ToolboxDep) -> SecondFactorSecret:
    """Make a secret for an authenticator app; it is asked for once a code of it was confirmed."""
    return await second_factor.begin(tools, user, data)


@router.post("/second-factor/confirm", responses=problem_responses(401, 403, 409, 422, 429))
async def confirm_second_factor(data: SecondFactorCode, user: CurrentUser, tools: ToolboxDep) -> RecoveryCodes:
    """Ask for a second factor from now on, and get the recovery codes, which are shown this once."""
    return await second_factor.confirm(tools, user, data)


@router.post("/second-factor/disable", status_code=204, responses=problem_responses(401, 403, 409, 422, 429))
async def disable_second_factor(data: PasswordConfirmation, user: CurrentUser, tools: ToolboxDep) -> None:
    """No longer ask for a second factor; the recovery codes are gone, too."""
    await second_factor.disable(tools, user, data)
