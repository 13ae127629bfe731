"""A clock that stands still until a test advances it."""

from functools import cache

import pytest

from app.core.security import throttling
from tests.support.second_factor import NOW


class Clock:
    """The clock of an application, and of the throttle, which otherwise reads the database's clock.

    Pass it as an argument where code takes a clock: a call returns `now`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._real = dict(throttling.CLOCKED)
        self.now = NOW

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = now
        self._monkeypatch.setattr(throttling, "CLOCKED", dict.fromkeys(self._real, _stop_at(float(now))))

    def __call__(self) -> float:
        return self._now

    def run(self) -> None:
        """Let the throttle read the database's clock again."""
        self._monkeypatch.setattr(throttling, "CLOCKED", self._real)


@cache
def _stop_at(now: float) -> throttling.ClockedStatements:
    # Cached, because every test with the application creates a clock.
    return throttling.ClockedStatements(repr(now))
