class RefusedError(Exception):
    """A request that is not possible; the message says why and what to do. Nothing has been changed."""
