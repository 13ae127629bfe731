import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from app.core.http_client import describe_failure
from app.weather.exceptions import BusyError, CutShortError, NotAskedError, UpstreamError

logger = structlog.get_logger(__name__)


class Breaker:
    """Spare a service that fails, and those who would wait for it.

    After so many failures in a row nothing is asked for some seconds; then one call tries, and its outcome decides.
    """

    def __init__(self, failures: int, seconds: float) -> None:
        self._limit = failures
        self._seconds = seconds
        self._failures = 0
        self._opens_until = -math.inf
        self._is_tried = False

    @property
    def is_open(self) -> bool:
        return self._failures >= self._limit

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Raises NotAskedError while open; counts what the block raises, if that tells about the service."""
        is_trial = self._enter()
        try:
            yield
        except CutShortError:
            raise
        except UpstreamError as error:
            self._fail(error)
            raise
        else:
            self._failures = 0
        finally:
            # Also when it was cancelled, which says nothing about the service.
            if is_trial:
                self._is_tried = False

    def _enter(self) -> bool:
        """Return whether this is the one call that tries."""
        if not self.is_open:
            return False
        wait = self._opens_until - time.monotonic()
        if wait > 0 or self._is_tried:
            raise NotAskedError("The weather service has failed, and is given a pause.", wait)
        self._is_tried = True
        return True

    def _fail(self, error: UpstreamError) -> None:
        self._failures += 1
        cause = describe_failure(error.__cause__) if error.__cause__ else None
        logger.warning("the weather service failed", reason=error.detail, cause=cause, in_a_row=self._failures)
        seconds = self._seconds
        if isinstance(error, BusyError):
            # It has said itself for how long.
            self._failures = max(self._failures, self._limit)
            seconds = error.retry_after_seconds
        if self.is_open:
            self._opens_until = time.monotonic() + seconds
