import asyncio

import structlog
from sqlalchemy import String, func, select
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from app.core.db.revisions import MigrationsError, is_up_to_date
from app.core.db.session import Database
from app.core.errors import UnavailableError, first_line

logger = structlog.get_logger(__name__)

# Also on in a standby that was not promoted.
READ_ONLY = select(func.current_setting("transaction_read_only", type_=String))

# The event loop alone would not keep them.
_under_way: set[asyncio.Task[bool]] = set()


async def require_ready(database: Database, timeout_seconds: float) -> None:
    """Raise UnavailableError unless the database answers in time, takes writes, and has a schema for this release."""
    asking = asyncio.create_task(_is_up_to_date(database))
    _under_way.add(asking)
    asking.add_done_callback(_let_go)
    try:
        # A driver that is told to stop may take its time over it: the answer does not wait for that.
        done, _ = await asyncio.wait({asking}, timeout=timeout_seconds)
        if not done:
            raise TimeoutError
        up_to_date = asking.result()
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        command = "upgrade" if _lacks_schema(error) else "check"
        reason = first_line(error) or type(error).__name__
        logger.warning("not ready", reason=reason, command=f"python -m app db {command}")
        raise UnavailableError("The database is not ready.") from error
    except MigrationsError as error:
        logger.warning("not ready", reason=error.detail)
        raise UnavailableError("The database is not ready.") from error
    finally:
        asking.cancel()
    if not up_to_date:
        logger.warning("not ready", reason="the schema is behind this release", command="python -m app db upgrade")
        raise UnavailableError("The database is not ready.")


def _let_go(asking: asyncio.Task[bool]) -> None:
    _under_way.discard(asking)
    if not asking.cancelled():
        # Otherwise it would be logged as one that nobody has looked at.
        asking.exception()


async def _is_up_to_date(database: Database) -> bool:
    """Raise UnavailableError where the database takes no writes."""
    if await _is_read_only(database):
        logger.warning("not ready", reason="the database takes no writes")
        raise UnavailableError("The database is not ready.")
    async with database.read() as session:
        return await is_up_to_date(session)


async def _is_read_only(database: Database) -> bool:
    """Ask twice: a connection from before a failover still reaches the old server, and is replaced."""
    for _ in range(2):
        async with database.read() as session:
            connection = await session.connection()
            if connection.dialect.name != "postgresql" or await connection.scalar(READ_ONLY) != "on":
                return False
            await session.discard_connection()
    return True


def _lacks_schema(error: Exception) -> bool:
    # SQLite has no error of its own for it.
    return isinstance(error, ProgrammingError) or "no such table" in first_line(error)
