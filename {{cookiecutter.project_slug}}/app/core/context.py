from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from app.core.audit.log import Audit
from app.core.config.settings import Settings
from app.core.db.session import Database, Session
from app.core.dependencies import (
    AuditDep,
    ClientInfoDep,
    GuessThrottleDep,
    LazyHttpDep,
    PasswordHasherDep,
    SecretBoxDep,
    SessionDep,
    SettingsDep,
    TokenSignerDep,
)
from app.core.http.request import ClientInfo
from app.core.security.encryption import SecretBox
from app.core.security.hashing import PasswordHasher
from app.core.security.throttling import GuessThrottle
from app.core.security.tokens import TokenSigner
from app.core.upstream.http_client import LazyHttpClient


@dataclass(frozen=True)
class Context:
    """The dependencies that nearly every operation on an account needs."""

    session: SessionDep
    settings: SettingsDep
    passwords: PasswordHasherDep
    tokens: TokenSignerDep
    secret_box: SecretBoxDep
    throttle: GuessThrottleDep
    audit: AuditDep
    client: ClientInfoDep
    # None if the operation must not call other services, for instance while sample data is loaded.
    http: LazyHttpDep = None

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
            http=http,
        )


ContextDep = Annotated[Context, Depends()]
