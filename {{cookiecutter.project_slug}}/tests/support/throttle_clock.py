"""The clock that the throttle reads, which is the database's, stopped."""

import pytest

from app.core.security import throttling


class ThrottleClock:
    """The seconds since the epoch, as far as the throttle can tell: they pass when a test says so."""

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
        """Go on as the database's clock does."""
        self._monkeypatch.setattr(throttling, "CLOCKED", self._real)
