import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from app.core.audit.log import Audit
from app.core.config.settings import Settings
from app.core.db.session import Database, Session
from app.core.dependencies import ClientInfoDep, SessionDep
from app.core.http.request import AppRequest, ClientInfo
from app.core.security.encryption import SecretBox
from app.core.security.hashing import PasswordHasher
from app.core.security.throttling import GuessThrottle
from app.core.security.tokens import TokenSigner
from app.core.upstream.http_client import LazyHttpClient


@dataclass(frozen=True)
class Context:
    """The dependencies that nearly every operation on an account needs."""

    session: Session
    settings: Settings
    passwords: PasswordHasher
    tokens: TokenSigner
    secret_box: SecretBox
    throttle: GuessThrottle
    audit: Audit
    client: ClientInfo
    # Returns seconds since the epoch.
    clock: Callable[[], float]
    # None if the operation must not call other services, for instance while sample data is loaded.
    http: LazyHttpClient | None

    @classmethod
    def for_operator(
        cls, session: Session, database: Database, settings: Settings, http: LazyHttpClient | None = None
    ) -> "Context":
        """Return a context for an operation outside of a request, such as a command."""
        client = ClientInfo(user_agent="command line")
        return cls(
            session=session,
            settings=settings,
            passwords=PasswordHasher(settings),
            tokens=TokenSigner(settings),
            secret_box=SecretBox(settings),
            throttle=GuessThrottle(database, settings),
            audit=Audit(session, client),
            client=client,
            clock=time.time,
            http=http,
        )


async def get_context(request: AppRequest, session: SessionDep, client: ClientInfoDep) -> Context:
    # Read from request.state: resolving a dependency for each field would cost more than the lookup.
    state = request.state
    return Context(
        session=session,
        settings=state["settings"],
        passwords=state["passwords"],
        tokens=state["tokens"],
        secret_box=state["secret_box"],
        throttle=GuessThrottle(state["database"], state["settings"]),
        audit=Audit(session, client),
        client=client,
        clock=state["clock"],
        http=state["http"],
    )


ContextDep = Annotated[Context, Depends(get_context)]
