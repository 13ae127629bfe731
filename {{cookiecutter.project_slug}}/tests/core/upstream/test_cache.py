import asyncio

import pytest

from app.core.upstream.cache import CachedValue, StaleCache
from app.core.upstream.errors import TransientUpstreamError, UpstreamRefusedError
from tests.support.clock import Clock
from tests.support.second_factor import NOW
from tests.support.timing import wait_until


async def fetch_value() -> str:
    return "new"


async def fetch_in_vain() -> str:
    raise TransientUpstreamError("no")


async def test_value_is_fresh_then_stale_then_gone(clock: Clock) -> None:
    cache = StaleCache[str, str](fresh_seconds=60, stale_seconds=40, size=10, clock=clock)

    assert await cache.get("a", fetch_value) == CachedValue("new")
    clock.now = NOW + 59
    assert await cache.get("a", fetch_in_vain) == CachedValue("new")
    for clock.now in (NOW + 60, NOW + 99):
        assert await cache.get("a", fetch_in_vain) == CachedValue("new", is_stale=True)
    clock.now = NOW + 100
    with pytest.raises(TransientUpstreamError):
        await cache.get("a", fetch_in_vain)


async def test_expired_value_is_fetched_again(clock: Clock) -> None:
    cache = StaleCache[str, float](fresh_seconds=60, stale_seconds=0, size=10, clock=clock)

    async def read_clock() -> float:
        return clock.now

    values = []
    for clock.now in (NOW, NOW + 59, NOW + 60, NOW + 119):
        values.append((await cache.get("a", read_clock)).value)

    assert values == [NOW, NOW, NOW + 60, NOW + 60]


async def test_stale_value_does_not_hide_other_errors(clock: Clock) -> None:
    cache = StaleCache[str, str](fresh_seconds=0, stale_seconds=60, size=10, clock=clock)

    async def refuse() -> str:
        raise UpstreamRefusedError("no", 404)

    await cache.get("a", fetch_value)
    with pytest.raises(UpstreamRefusedError):
        await cache.get("a", refuse)


async def test_concurrent_misses_share_a_fetch_and_a_cancelled_caller_does_not_end_it(clock: Clock) -> None:
    cache = StaleCache[str, str](fresh_seconds=60, stale_seconds=60, size=10, clock=clock)
    ready = asyncio.Event()
    fetches = []

    async def fetch_when_ready() -> str:
        fetches.append("once")
        await ready.wait()
        return "new"

    waiting = [asyncio.create_task(cache.get("a", fetch_when_ready)) for _ in range(100)]
    await wait_until(lambda: bool(fetches))
    waiting[0].cancel()
    await asyncio.sleep(0)
    ready.set()

    assert {cached.value for cached in await asyncio.gather(*waiting[1:])} == {"new"}
    assert fetches == ["once"]


async def test_cache_evicts_the_least_recently_used_key(clock: Clock) -> None:
    cache = StaleCache[str, str](fresh_seconds=60, stale_seconds=60, size=2, clock=clock)
    fetches = []

    async def fetch_key(key: str) -> str:
        fetches.append(key)
        return key

    for key in ("a", "b", "a", "c", "a", "b"):
        await cache.get(key, lambda key=key: fetch_key(key))  # type: ignore[misc]  # mypy infers no default of a lambda

    assert fetches == ["a", "b", "c", "b"]


async def test_close_cancels_running_fetches(clock: Clock) -> None:
    cache = StaleCache[str, str](fresh_seconds=60, stale_seconds=60, size=10, clock=clock)
    before = asyncio.all_tasks()

    async def hang_for_long() -> str:
        await asyncio.sleep(600)
        raise AssertionError

    waiting = asyncio.create_task(cache.get("a", hang_for_long))
    await wait_until(lambda: len(asyncio.all_tasks()) == len(before) + 2)
    await cache.close()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert asyncio.all_tasks() == before
