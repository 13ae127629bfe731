from typing import Annotated
from uuid import UUID

from fastapi import Depends

from app.accounts.dependencies import CurrentUser
from app.accounts.passkeys import service
from app.accounts.passkeys.service import PasskeyRecord
from app.core.dependencies import SessionDep


async def get_own_passkey(passkey_id: UUID, user: CurrentUser, session: SessionDep) -> PasskeyRecord:
    return await service.get_passkey(session, user.id, passkey_id)


OwnPasskeyDep = Annotated[PasskeyRecord, Depends(get_own_passkey)]
