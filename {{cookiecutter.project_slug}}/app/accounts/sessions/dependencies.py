from typing import Annotated
from uuid import UUID

from fastapi import Depends

from app.accounts.dependencies import CurrentCaller
from app.accounts.sessions import service
from app.accounts.sessions.service import SessionRecord
from app.core.dependencies import SessionDep


async def get_own_session(session_id: UUID, caller: CurrentCaller, session: SessionDep) -> SessionRecord:
    return await service.get_session(session, caller, session_id)


OwnSessionDep = Annotated[SessionRecord, Depends(get_own_session)]
