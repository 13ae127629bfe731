"""The audit log: changes of accounts, and refused requests, with actor, time and client."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import structlog
from asgi_correlation_id import correlation_id
from fastapi import Request
from fastapi.responses import Response
from sqlalchemy import Integer, bindparam, func, insert, select
from starlette.background import BackgroundTask

from app.core.audit.models import AuditEvent
from app.core.config.settings import Settings
from app.core.db.models import utc_now
from app.core.db.query import BATCH_SIZE, Command, Query, delete_batch
from app.core.db.session import Session
from app.core.errors import first_line
from app.core.http.request import AppRequest, ClientInfo, read_client_info
from app.core.security.throttling import AttemptCounter, GuessThrottle, network_of

logger = structlog.get_logger(__name__)

MAX_PATH_LENGTH = 200

ExceptionHandler = Callable[[Request[Any], Any], Awaitable[Response]]


class RefusalEvent(StrEnum):
    """Audit events of refused requests."""

    FORBIDDEN = "request.forbidden"
    THROTTLED = "request.throttled"


REFUSALS = {403: RefusalEvent.FORBIDDEN, 429: RefusalEvent.THROTTLED}


CREATE_EVENT = Command(insert(AuditEvent))
PURGE_EVENTS = delete_batch(AuditEvent, AuditEvent.created_at <= bindparam("created_before"))
# On PostgreSQL, the service's role may not delete events. The function purge_audit_events (SECURITY DEFINER) deletes
# old ones with the rights of the tables' owner.
PURGE_AS_OWNER = Query(select(func.purge_audit_events(bindparam("created_before"), BATCH_SIZE, type_=Integer)))


class Audit:
    """Records an event in the transaction of the change, so that neither is committed without the other."""

    def __init__(self, session: Session, client: ClientInfo) -> None:
        self._session = session
        self._client = client

    async def record(
        self, event: StrEnum, user_id: UUID | None, *, actor_id: UUID | None = None, **details: object
    ) -> None:
        await self._session.run(
            CREATE_EVENT,
            event=event,
            user_id=user_id,
            actor_id=actor_id,
            address=self._client.ip_address,
            device=self._client.user_agent,
            request_id=correlation_id.get(),
            details=details,
        )


async def purge_events(session: Session, settings: Settings) -> int:
    """Delete events older than AUDIT_LOG_LIFETIME_SECONDS, and return their number."""
    created_before = utc_now() - timedelta(seconds=settings.audit_log_lifetime_seconds)
    if session.get_bind().dialect.name == "sqlite":
        return await session.run(PURGE_EVENTS, created_before=created_before)
    (deleted,) = await session.fetch_one(PURGE_AS_OWNER, created_before=created_before)
    return deleted


def record_refusals(handle: ExceptionHandler) -> ExceptionHandler:
    """Return a handler that responds as `handle` does, and afterwards records refusals with status 403 or 429."""

    async def handle_and_record(request: Request[Any], error: Exception) -> Response:
        response = await handle(request, error)
        event = REFUSALS.get(response.status_code)
        if event is not None:
            # Record the refusal in a background task, which neither delays the response nor makes it fail.
            response.background = BackgroundTask(_record_refusal, AppRequest(request.scope), event, str(error))
        return response

    return handle_and_record


async def _record_refusal(request: AppRequest, event: RefusalEvent, reason: str) -> None:
    """Record a refusal in a new transaction, because the request's own transaction has ended.

    A throttle limits how many of these events one account or one network can add.
    """
    state = request.state
    settings = state["settings"]
    actor_id = state["actor_id"] if "actor_id" in state else None  # noqa: SIM401  # Starlette's State has no `get`
    client = read_client_info(request)
    source = str(actor_id or network_of(client.ip_address))
    counter = AttemptCounter(f"event: {event}", source, settings.throttle_address_attempts)
    throttle = GuessThrottle(state["database"], settings)
    details = {"method": request.method, "path": request.url.path[:MAX_PATH_LENGTH], "reason": reason}
    try:
        async with state["database"].write() as session:
            if await throttle.try_take(session, counter):
                await Audit(session, client).record(event, actor_id, actor_id=actor_id, **details)
    except Exception as failure:
        # The response has been sent: log the failure instead of raising it.
        logger.warning("a refusal was not recorded", reason=first_line(failure))
