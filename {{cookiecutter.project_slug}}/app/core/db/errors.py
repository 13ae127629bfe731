from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from app.core.errors import first_line

# Violations of foreign keys and unique constraints: PostgreSQL reports SQLSTATEs, SQLite messages.
CONFLICT_STATES = frozenset({"23503", "23505"})
CONFLICT_WORDS = ("FOREIGN KEY constraint failed", "UNIQUE constraint failed")


def is_conflict(error: BaseException) -> bool:
    """Return whether a foreign key or a unique constraint was violated."""
    return isinstance(error, IntegrityError) and (
        getattr(error.orig, "sqlstate", None) in CONFLICT_STATES or first_line(error).startswith(CONFLICT_WORDS)
    )


def is_database_unavailable(error: BaseException) -> bool:
    if isinstance(error, PoolTimeoutError | OSError | TimeoutError):
        return True
    # OperationalError: a refused or lost connection, a shutdown, a statement timeout, SQLite's "database is locked".
    return isinstance(error, DBAPIError) and (
        error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    )
