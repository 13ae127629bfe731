import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from app.core.upstream.errors import (
    UpstreamError,
    UpstreamRateLimitedError,
    UpstreamSkippedError,
    UpstreamTimeoutTooShortError,
)
from app.core.upstream.http_client import describe_failure

logger = structlog.get_logger(__name__)


class Breaker:
    """Circuit breaker: after `failures` failures in a row, no calls are made for `seconds`.

    Then the breaker is half-open: the outcome of one trial call closes it or opens it again.
    """

    def __init__(
        self, name: str, *, failures: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._limit = failures
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._open_until = -math.inf
        self._has_trial = False

    @property
    def is_open(self) -> bool:
        return self._failures >= self._limit

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Raise UpstreamSkippedError while the breaker is open; count each UpstreamError of the `with` block.

        UpstreamTimeoutTooShortError is not counted.
        """
        is_trial = self._enter()
        try:
            yield
        except UpstreamTimeoutTooShortError:
            raise
        except UpstreamError as error:
            self._record_failure(error)
            raise
        else:
            self._failures = 0
        finally:
            # A cancelled trial decides nothing: the next call is a trial again.
            if is_trial:
                self._has_trial = False

    def _enter(self) -> bool:
        """Return whether this call is the trial; raises UpstreamSkippedError if no call is allowed."""
        if not self.is_open:
            return False
        wait = self._open_until - self._clock()
        if wait > 0 or self._has_trial:
            raise UpstreamSkippedError(f"The {self._name} is temporarily unavailable.", wait)
        self._has_trial = True
        return True

    def _record_failure(self, error: UpstreamError) -> None:
        self._failures += 1
        cause = describe_failure(error.__cause__) if error.__cause__ else None
        logger.warning(
            "upstream failed", upstream=self._name, reason=error.detail, cause=cause, failures_in_a_row=self._failures
        )
        seconds = self._seconds
        if isinstance(error, UpstreamRateLimitedError):
            # Open the breaker at once, for the time in Retry-After.
            self._failures = max(self._failures, self._limit)
            seconds = error.retry_after_seconds
        if self.is_open:
            self._open_until = self._clock() + seconds
