from app.core.errors import AppError


class CopyError(AppError):
    """The copy was refused or failed, and the target is as it was before; the message tells the operator the remedy."""
