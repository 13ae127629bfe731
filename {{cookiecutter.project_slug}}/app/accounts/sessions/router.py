from app.accounts.confirmations import ConfirmationDep
from app.accounts.dependencies import CurrentCaller
from app.accounts.sessions import service
from app.accounts.sessions.dependencies import OwnSessionDep
from app.accounts.sessions.schemas import SessionRead
from app.accounts.sessions.service import SessionRecord
from app.core.context import ContextDep
from app.core.dependencies import SessionDep
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter

router = FeatureRouter(prefix="/sessions", tags=["auth"])


@router.get("", response_model=list[SessionRead], responses=problem_responses(401, 403))
async def list_sessions(caller: CurrentCaller, session: SessionDep) -> list[SessionRecord]:
    """List the account's sessions, most recently used first."""
    return await service.list_sessions(session, caller)


@router.delete("/{session_id}", status_code=204, responses=problem_responses(401, 403, 404))
async def end_session(own_session: OwnSessionDep, confirmation: ConfirmationDep, ctx: ContextDep) -> None:
    """End one of your sessions. Any session except the current one requires the header `X-Confirmation`."""
    if not own_session.is_current:
        await confirmation.require()
    await service.end_session(ctx.session, ctx.audit, own_session.id)
