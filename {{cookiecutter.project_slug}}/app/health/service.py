import asyncio

import structlog
from sqlalchemy import String, func, select
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from app.core.db.revisions import MigrationsError, is_up_to_date
from app.core.db.session import Database
from app.core.errors import UnavailableError, first_line

logger = structlog.get_logger(__name__)

# This setting is "on" if transactions are read-only; on a standby server they always are.
READ_ONLY = select(func.current_setting("transaction_read_only", type_=String))

# References to the running checks, because the event loop holds only weak references to tasks.
_checks: set[asyncio.Task[bool]] = set()


async def require_ready(database: Database, timeout_seconds: float) -> None:
    """Raise UnavailableError unless the database responds in time, is writable, and has the schema of this release."""
    check = asyncio.create_task(_is_up_to_date(database))
    _checks.add(check)
    check.add_done_callback(_discard_task)
    try:
        # asyncio.wait returns at the timeout; asyncio.timeout would wait until the driver has handled the cancellation.
        done, _ = await asyncio.wait({check}, timeout=timeout_seconds)
        if not done:
            raise TimeoutError
        up_to_date = check.result()
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        command = "upgrade" if _lacks_schema(error) else "check"
        reason = first_line(error) or type(error).__name__
        logger.warning("not ready", reason=reason, command=f"python -m app db {command}")
        raise UnavailableError("The database is not ready.", code="database-not-ready") from error
    except MigrationsError as error:
        logger.warning("not ready", reason=error.detail)
        raise UnavailableError("The database is not ready.", code="database-not-ready") from error
    finally:
        check.cancel()
    if not up_to_date:
        logger.warning("not ready", reason="the schema is behind this release", command="python -m app db upgrade")
        raise UnavailableError("The database is not ready.", code="database-not-ready")


def _discard_task(check: asyncio.Task[bool]) -> None:
    _checks.discard(check)
    if not check.cancelled():
        # Retrieve the exception: asyncio would log it as never retrieved.
        check.exception()


async def _is_up_to_date(database: Database) -> bool:
    """Return whether the schema is up to date; raises UnavailableError if the database is read-only."""
    if await _is_read_only(database):
        logger.warning("not ready", reason="the database is read-only")
        raise UnavailableError("The database is not ready.", code="database-not-ready")
    async with database.read() as session:
        return await is_up_to_date(session)


async def _is_read_only(database: Database) -> bool:
    """Return whether the database is read-only, which a second connection must confirm.

    After a failover, a pooled connection may still lead to the old primary: discard it, and check with a new one.
    """
    for _ in range(2):
        async with database.read() as session:
            connection = await session.connection()
            if connection.dialect.name != "postgresql" or await connection.scalar(READ_ONLY) != "on":
                return False
            await session.discard_connection()
    return True


def _lacks_schema(error: Exception) -> bool:
    # SQLite has no specific error for a missing table.
    return isinstance(error, ProgrammingError) or "no such table" in first_line(error)
