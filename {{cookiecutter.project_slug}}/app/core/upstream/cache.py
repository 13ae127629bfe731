import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from app.core.upstream.errors import UpstreamError

logger = structlog.get_logger(__name__)

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class CachedValue(Generic[Value]):
    value: Value
    is_stale: bool = False


@dataclass(frozen=True)
class _Entry(Generic[Value]):
    value: Value
    stored_at: float


class StaleCache(Generic[Key, Value]):
    """LRU cache of fetched values, which are fresh for `fresh_seconds`; concurrent misses of a key share one fetch.

    If a fetch raises UpstreamError, `get` returns the previous value, marked as stale, for another `stale_seconds`.
    """

    def __init__(
        self, *, fresh_seconds: float, stale_seconds: float, size: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fresh_seconds = fresh_seconds
        self._stale_seconds = stale_seconds
        self._size = size
        self._clock = clock
        self._entries: OrderedDict[Key, _Entry[Value]] = OrderedDict()
        self._fetches: dict[Key, asyncio.Task[Value]] = {}

    def is_fresh(self, key: Key) -> bool:
        """Return whether `get` would return a value without a fetch."""
        entry = self._entries.get(key)
        return entry is not None and self._clock() - entry.stored_at < self._fresh_seconds

    async def get(self, key: Key, fetch: Callable[[], Awaitable[Value]]) -> CachedValue[Value]:
        entry = self._entries.get(key)
        if entry is not None and self.is_fresh(key):
            self._entries.move_to_end(key)
            return CachedValue(entry.value)
        try:
            # Shielded: a caller that is cancelled must not cancel the fetch for the others.
            return CachedValue(await asyncio.shield(self._fetch_once(key, fetch)))
        except UpstreamError as error:
            if entry is None or self._clock() - entry.stored_at >= self._fresh_seconds + self._stale_seconds:
                raise
            logger.warning("stale value returned", reason=error.detail)
            return CachedValue(entry.value, is_stale=True)

    def _fetch_once(self, key: Key, fetch: Callable[[], Awaitable[Value]]) -> asyncio.Task[Value]:
        task = self._fetches.get(key)
        if task is None:
            task = self._fetches[key] = asyncio.create_task(self._fetch(key, fetch))
            task.add_done_callback(_mark_retrieved)
        return task

    async def _fetch(self, key: Key, fetch: Callable[[], Awaitable[Value]]) -> Value:
        try:
            value = await fetch()
        finally:
            del self._fetches[key]
        self._entries[key] = _Entry(value, self._clock())
        self._entries.move_to_end(key)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
        return value

    async def close(self) -> None:
        """Cancel the fetches that are running."""
        tasks = list(self._fetches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _mark_retrieved(task: asyncio.Task[Value]) -> None:
    # Retrieve the exception: if all callers were cancelled, asyncio would log that it "was never retrieved".
    if not task.cancelled():
        task.exception()
