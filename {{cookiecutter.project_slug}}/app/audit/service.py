from datetime import datetime
from functools import cache
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Select, bindparam, select

from app.core.audit.models import AuditEvent
from app.core.db.query import Query, columns
from app.core.db.session import Session
from app.core.http.pagination import PageRequest, PageResult, paginate

NEWEST = "-created_at"


class EventRecord(NamedTuple):
    id: UUID
    event: str
    user_id: UUID | None
    actor_id: UUID | None
    address: str | None
    device: str
    request_id: str | None
    details: dict[str, Any]
    created_at: datetime


COLUMNS = columns(EventRecord, AuditEvent)


async def list_events(
    session: Session, page: PageRequest, *, user_id: UUID | None, event: str | None
) -> PageResult[EventRecord]:
    wanted = {"of_user_id": user_id, "of_event": event}
    filters = {name: value for name, value in wanted.items() if value is not None}
    query = _list_query(frozenset(filters), after_cursor=page.cursor is not None)
    return page.build(await session.fetch_all(query, **filters, **page.parameters(NEWEST)), NEWEST)


@cache
def _list_query(filters: frozenset[str], *, after_cursor: bool) -> Query[EventRecord]:
    statement: Select[*tuple[Any, ...]] = select(*COLUMNS)
    if "of_user_id" in filters:
        statement = statement.where(AuditEvent.user_id == bindparam("of_user_id"))
    if "of_event" in filters:
        statement = statement.where(AuditEvent.event == bindparam("of_event"))
    return paginate(statement, EventRecord, AuditEvent, descending=True, after_cursor=after_cursor)
