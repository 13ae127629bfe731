from app.core.errors import AppError


class PlaceRefusedError(AppError):
    status = 400


class UpstreamError(AppError):
    """The weather service failed: an older answer may stand in for this one."""

    # Whether another attempt may help at once.
    is_passing = False

    def __init__(self, detail: str, retry_after_seconds: float = 1) -> None:
        super().__init__(detail)
        self.retry_after_seconds = max(1, round(retry_after_seconds))
        self.headers = {"Retry-After": str(self.retry_after_seconds)}


class BadAnswerError(UpstreamError):
    status = 502


class PassingError(BadAnswerError):
    """A 5xx, or an answer that broke off."""

    is_passing = True


class UnreachableError(UpstreamError):
    status = 503
    is_passing = True


class NotAskedError(UpstreamError):
    """It was not even asked: for want of a key, of a free place, or because it failed just now."""

    status = 503


class BusyError(UpstreamError):
    """It asks for a pause."""

    status = 503


class TooSlowError(UpstreamError):
    status = 504


class CutShortError(TooSlowError):
    """It had so little time left that this says nothing about it."""
