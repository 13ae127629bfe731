import asyncio

import structlog
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from app.core.database import Database
from app.core.exceptions import UnavailableError, first_line
from app.core.schema import is_at_head

logger = structlog.get_logger(__name__)


async def require_ready(database: Database, timeout_seconds: float) -> None:
    """Raise UnavailableError unless the database answers in time and its schema is the one this code needs."""
    try:
        async with asyncio.timeout(timeout_seconds), database.read() as session:
            at_head = await is_at_head(session)
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        command = "upgrade" if _lacks_schema(error) else "check"
        reason = first_line(error) or type(error).__name__
        logger.warning("not ready", reason=reason, command=f"python -m app db {command}")
        raise UnavailableError("The database is not ready.") from error
    if not at_head:
        logger.warning("not ready", reason="the schema is not at head", command="python -m app db upgrade")
        raise UnavailableError("The database is not ready.")


def _lacks_schema(error: Exception) -> bool:
    # SQLite has no error of its own for it.
    return isinstance(error, ProgrammingError) or "no such table" in first_line(error)
