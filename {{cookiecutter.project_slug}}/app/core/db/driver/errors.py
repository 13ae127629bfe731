# SQLSTATEs of PostgreSQL. A prepared statement whose result columns have changed fails with FEATURE_NOT_SUPPORTED.
FEATURE_NOT_SUPPORTED = "0A000"
READ_ONLY_TRANSACTION = "25006"


def is_unusable_after(error: BaseException) -> bool:
    """Return whether further statements would fail on this connection, so that it has to be replaced.

    Either a migration has changed the columns of a statement that the connection has prepared, or the server is
    read-only, as after a failover: a new connection may reach the primary.
    """
    state = getattr(error, "sqlstate", None)
    return state == READ_ONLY_TRANSACTION or (state == FEATURE_NOT_SUPPORTED and "cached plan" in str(error))
