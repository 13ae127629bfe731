from typing import Annotated
from uuid import UUID

from fastapi import Depends

from app.auth import sessions
from app.auth.sessions import SessionRow
from app.core.database import SessionDep
from app.core.requests import OriginDep, SettingsDep
from app.core.throttling import AttemptCounter, GuessThrottleDep, network_of
from app.users.dependencies import CurrentUser


async def get_own_session(session_id: UUID, user: CurrentUser, session: SessionDep) -> SessionRow:
    return await sessions.get_session(session, user, session_id)


async def take_code_attempt(settings: SettingsDep, throttle: GuessThrottleDep, origin: OriginDep) -> None:
    counter = AttemptCounter("code from address", network_of(origin.address), settings.throttle_address_attempts)
    await throttle.count(counter)


limit_codes = Depends(take_code_attempt)

OwnSessionDep = Annotated[SessionRow, Depends(get_own_session)]
