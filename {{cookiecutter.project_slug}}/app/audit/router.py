from typing import Annotated
from uuid import UUID

from fastapi import Query

from app.accounts.dependencies import AdminUser
from app.audit import service
from app.audit.schemas import AuditEventRead
from app.audit.service import EventRecord
from app.core.dependencies import SessionDep
from app.core.http.pagination import Page, PageDep, PageResult
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter
from app.core.http.schemas import SingleLine

router = FeatureRouter(prefix="/audit-events", tags=["audit"])

EventQuery = Annotated[SingleLine | None, Query(description="Only events with this name.")]


@router.get("", response_model=Page[AuditEventRead], responses=problem_responses(401, 403))
async def list_audit_events(
    _admin: AdminUser, session: SessionDep, page: PageDep, user_id: UUID | None = None, event: EventQuery = None
) -> PageResult[EventRecord]:
    """List audit events, newest first. For administrators."""
    return await service.list_events(session, page, user_id=user_id, event=event)
