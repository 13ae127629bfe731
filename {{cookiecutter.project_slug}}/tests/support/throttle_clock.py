"""A stopped clock in place of the database's clock, which the throttle reads."""

import pytest

from app.core.security import throttling


class ThrottleClock:
    """The current time of the throttle, in seconds since the epoch; a test advances it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._real = dict(throttling.CLOCKED)
        self.now = 1_800_000_000.0

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = now
        stopped = throttling.ClockedStatements(repr(now))
        self._monkeypatch.setattr(throttling, "CLOCKED", dict.fromkeys(self._real, stopped))

    def run(self) -> None:
        """Let the time pass again, as on the database's clock."""
        self._monkeypatch.setattr(throttling, "CLOCKED", self._real)
