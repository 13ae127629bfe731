from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.audit import AuditEvent
from app.core.pagination import PageRequest, Slice, paginate

EVENT_COLUMNS = (
    AuditEvent.id,
    AuditEvent.event,
    AuditEvent.user_id,
    AuditEvent.actor_id,
    AuditEvent.address,
    AuditEvent.device,
    AuditEvent.request_id,
    AuditEvent.details,
    AuditEvent.created_at,
)


async def list_events(session: AsyncSession, page: PageRequest, *, user_id: UUID | None, event: str | None) -> Slice:
    sort = "-created_at"
    filters = {"of_user": user_id is not None, "of_event": event is not None}
    statement = _list_statement(**filters, continued=page.cursor is not None)
    parameters = {"of_user_id": user_id, "of_event": event, **page.parameters(sort)}
    return page.cut((await session.execute(statement, parameters)).all(), sort)


@cache
def _list_statement(*, of_user: bool, of_event: bool, continued: bool) -> Select[*tuple[Any, ...]]:
    statement: Select[*tuple[Any, ...]] = select(*EVENT_COLUMNS)
    if of_user:
        statement = statement.where(AuditEvent.user_id == bindparam("of_user_id"))
    if of_event:
        statement = statement.where(AuditEvent.event == bindparam("of_event"))
    return paginate(statement, AuditEvent, descending=True, continued=continued)
