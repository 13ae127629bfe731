"""Codes that prove, for the next minutes, that it is the owner who uses a session and not somebody with a copied token.

A route that changes what matters takes one in a line: `caller: ConfirmedCaller`. One that needs it only sometimes takes
`confirmation: ConfirmationDep`, and calls `await confirmation.require()` where it does.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Header, Security

from app.accounts import one_time_tokens
from app.accounts.dependencies import ClaimsDep, CurrentCaller
from app.accounts.models import Caller
from app.accounts.scopes import Scope
from app.core.database import Session, SessionDep, commit_and_release
from app.core.exceptions import ForbiddenError, UnprocessableError
from app.core.schemas import MAX_CODE_LENGTH
from app.core.security import AccessClaims

PURPOSE = "confirmation"
LIFETIME = timedelta(minutes=5)
HEADER = "X-Confirmation"
REFUSAL = (
    "This needs a confirmation that it is you: send your password to POST /auth/confirmation, "
    f"and the code that it answers as the header {HEADER}. It works once, in the same session, for 5 minutes."
)


@dataclass(frozen=True)
class Confirmation:
    """What the request brings as a confirmation, which may be nothing."""

    claims: ClaimsDep
    session: SessionDep
    code: Annotated[
        str, Header(alias=HEADER, max_length=MAX_CODE_LENGTH, description="A code of `POST /auth/confirmation`.")
    ] = ""

    async def require(self) -> None:
        """Use up the code. Raises ForbiddenError."""
        if not self.code or not await _use(self.session, self.claims, self.code):
            raise ForbiddenError(REFUSAL)
        # Commit here. Lock order: account, then code; this request has locked the code first, and could deadlock.
        await commit_and_release(self.session)


async def _use(session: Session, claims: AccessClaims, code: str) -> bool:
    try:
        found = await one_time_tokens.use_token(session, code, PURPOSE)
    except UnprocessableError:
        return False
    return found.user_id == claims.sub and found.payload == _payload(claims.sid)


ConfirmationDep = Annotated[Confirmation, Depends()]


async def get_confirmed_caller(caller: CurrentCaller, confirmation: ConfirmationDep) -> Caller:
    await confirmation.require()
    return caller


ConfirmedCaller = Annotated[Caller, Security(get_confirmed_caller, scopes=[Scope.ACCOUNT])]


async def create_confirmation(session: Session, caller: Caller) -> str:
    """For a caller who has just shown the password, and the code of the second factor where there is one."""
    user = caller.user
    return await one_time_tokens.create_token(
        session, PURPOSE, user.id, user.email, lifetime=LIFETIME, payload=_payload(caller.session_id)
    )


def _payload(session_id: object) -> dict[str, str]:
    return {"session_id": str(session_id)}
