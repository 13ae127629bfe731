from typing import Annotated
from uuid import UUID

from fastapi import Depends

from app.auth import sessions
from app.auth.sessions import SessionRecord
from app.core.database import SessionDep
from app.core.requests import OriginDep, SettingsDep
from app.core.throttling import AttemptCounter, GuessThrottleDep, network_of
from app.users.dependencies import CurrentCaller


async def get_own_session(session_id: UUID, caller: CurrentCaller, session: SessionDep) -> SessionRecord:
    return await sessions.get_session(session, caller, session_id)


async def take_code_attempt(settings: SettingsDep, throttle: GuessThrottleDep, origin: OriginDep) -> None:
    counter = AttemptCounter("code from address", network_of(origin.address), settings.throttle_address_attempts)
    await throttle.count(counter)


limit_codes = Depends(take_code_attempt)

OwnSessionDep = Annotated[SessionRecord, Depends(get_own_session)]
