# SQLSTATEs of PostgreSQL. A prepared statement whose result columns have changed fails with FEATURE_NOT_SUPPORTED.
FEATURE_NOT_SUPPORTED = "0A000"
READ_ONLY_TRANSACTION = "25006"


def is_unusable_after(error: BaseException) -> bool:
    """Return whether the connection of the failed statement has to be replaced, because further statements would fail.

    The error shows either that a migration has changed the columns of a statement that the connection has prepared, or
    that the server is read-only, as after a failover. A new connection has no prepared statements, and may reach the
    primary.
    """
    state = getattr(error, "sqlstate", None)
    return state == READ_ONLY_TRANSACTION or (state == FEATURE_NOT_SUPPORTED and "cached plan" in str(error))
