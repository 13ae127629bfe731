from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from app.core.audit import Audit, AuditDep
from app.core.config import Settings
from app.core.database import Database, Session, SessionDep
from app.core.requests import Origin, OriginDep, SettingsDep
from app.core.security import Security, SecurityDep
from app.core.throttling import GuessThrottle, GuessThrottleDep
from app.core.upstream.http_client import LazyHttpClient, LazyHttpDep


@dataclass(frozen=True)
class Toolbox:
    """What nearly every act on an account needs."""

    session: SessionDep
    security: SecurityDep
    settings: SettingsDep
    throttle: GuessThrottleDep
    audit: AuditDep
    origin: OriginDep
    # None where no other service is to be called.
    http: LazyHttpDep = None


ToolboxDep = Annotated[Toolbox, Depends()]


def make_toolbox(
    session: Session, database: Database, settings: Settings, security: Security, http: LazyHttpClient | None = None
) -> Toolbox:
    """For an operator: what comes from no request."""
    origin = Origin(device="command line")
    return Toolbox(session, security, settings, GuessThrottle(database, settings), Audit(session, origin), origin, http)
