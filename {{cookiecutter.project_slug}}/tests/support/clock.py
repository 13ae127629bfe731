"""A clock that stands still until a test advances it."""

from types import SimpleNamespace

import pytest

from app.core.security import throttling
from tests.support.second_factor import NOW


class Clock:
    """The time of the codes of second factors, and of the throttle, which otherwise reads the database's clock.

    Code that takes a clock as an argument calls it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._real = dict(throttling.CLOCKED)
        self.now = NOW
        monkeypatch.setattr("app.accounts.second_factor.codes.time", SimpleNamespace(time=self))

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = now
        stopped = throttling.ClockedStatements(repr(float(now)))
        self._monkeypatch.setattr(throttling, "CLOCKED", dict.fromkeys(self._real, stopped))

    def __call__(self) -> float:
        return self._now

    def run(self) -> None:
        """Let the throttle read the database's clock again."""
        self._monkeypatch.setattr(throttling, "CLOCKED", self._real)
