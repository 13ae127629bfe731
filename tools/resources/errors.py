class RefusedError(Exception):
    """What was asked for is not possible; the message says why and what to do. Nothing has been changed."""
