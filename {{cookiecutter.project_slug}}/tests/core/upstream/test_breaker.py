import asyncio

import pytest

from app.core.upstream.breaker import Breaker
from app.core.upstream.errors import TransientUpstreamError, UpstreamSkippedError
from tests.support.clock import Clock
from tests.support.second_factor import NOW


def make_breaker(failures: int, seconds: float, clock: Clock) -> Breaker:
    return Breaker("rate service", failures=failures, seconds=seconds, clock=clock)


def fail(breaker: Breaker) -> None:
    with pytest.raises(TransientUpstreamError), breaker.guard():
        raise TransientUpstreamError("no")


def succeed(breaker: Breaker) -> None:
    with breaker.guard():
        pass


def skip(breaker: Breaker) -> UpstreamSkippedError:
    with pytest.raises(UpstreamSkippedError) as skipped, breaker.guard():
        raise AssertionError
    return skipped.value


def test_outcome_of_the_trial_opens_or_closes_the_breaker(clock: Clock) -> None:
    breaker = make_breaker(failures=1, seconds=60, clock=clock)

    fail(breaker)
    clock.now = NOW + 59
    assert skip(breaker).retry_after_seconds == 1
    clock.now = NOW + 60
    fail(breaker)
    clock.now = NOW + 119
    skip(breaker)
    clock.now = NOW + 120
    succeed(breaker)
    succeed(breaker)
    assert not breaker.is_open


def test_half_open_breaker_lets_one_call_through(clock: Clock) -> None:
    breaker = make_breaker(failures=1, seconds=0, clock=clock)
    fail(breaker)

    with breaker.guard():
        skip(breaker)

    with breaker.guard():
        succeed(breaker)
    assert not breaker.is_open


def test_cancelled_trial_leaves_breaker_open(clock: Clock) -> None:
    breaker = make_breaker(failures=1, seconds=0, clock=clock)
    fail(breaker)

    with pytest.raises(asyncio.CancelledError), breaker.guard():
        raise asyncio.CancelledError

    assert breaker.is_open
    succeed(breaker)
    assert not breaker.is_open


def test_success_resets_the_count_of_failures(clock: Clock) -> None:
    breaker = make_breaker(failures=2, seconds=60, clock=clock)

    fail(breaker)
    succeed(breaker)
    fail(breaker)
    assert not breaker.is_open
