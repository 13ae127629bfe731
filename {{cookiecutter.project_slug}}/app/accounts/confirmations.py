"""Confirmation codes: proof that a request comes from the owner of the account, not from a holder of a copied token.

A route with a sensitive change declares `caller: ConfirmedCaller`. A route that needs a confirmation only in some cases
declares `confirmation: ConfirmationDep`, and calls `await confirmation.require()` in these cases.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import Depends, Header, Security

from app.accounts import one_time_tokens
from app.accounts.dependencies import ClaimsDep, CurrentCaller
from app.accounts.models import Caller
from app.accounts.scopes import Scope
from app.core.db.session import Session, commit_and_release
from app.core.dependencies import SessionDep
from app.core.errors import ForbiddenError, UnprocessableError
from app.core.http.schemas import MAX_CODE_LENGTH
from app.core.security.tokens import AccessClaims

PURPOSE = "confirmation"
LIFETIME = timedelta(minutes=5)
HEADER = "X-Confirmation"
REFUSAL = (
    "Confirmation required: send your password to POST /auth/confirmation, and repeat this request with the returned "
    f"code in the header {HEADER}. The code works once, in the same session, for 5 minutes."
)


@dataclass(frozen=True)
class Confirmation:
    """The confirmation code from the header X-Confirmation; empty if the request does not have this header."""

    claims: ClaimsDep
    session: SessionDep
    code: Annotated[
        str, Header(alias=HEADER, max_length=MAX_CODE_LENGTH, description="A code from `POST /auth/confirmation`.")
    ] = ""

    async def require(self) -> None:
        """Use up the code, and commit. Raises ForbiddenError if it is missing, invalid, or from another session."""
        if not self.code or not await _use(self.session, self.claims, self.code):
            raise ForbiddenError(REFUSAL, code="confirmation-required")
        # Commit, to release the lock on the deleted code. The route may lock the user next, but the lock order is user,
        # then code: a route that still held the lock on the code could deadlock.
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
    """Create a code for one request in the caller's session. Call `confirm_identity` first to check the password."""
    user = caller.user
    return await one_time_tokens.create_token(
        session, PURPOSE, user.id, user.email, lifetime=LIFETIME, payload=_payload(caller.session_id)
    )


def _payload(session_id: object) -> dict[str, str]:
    return {"session_id": str(session_id)}
