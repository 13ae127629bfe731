import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from app.weather.exceptions import UpstreamError

logger = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Answer(Generic[T]):
    value: T
    is_stale: bool = False


@dataclass(frozen=True)
class _Kept(Generic[T]):
    value: T
    since: float


class Cache(Generic[T]):
    """Keep answers for a while, ask once for all who wait, and fall back on an old answer when asking fails."""

    def __init__(self, fresh_seconds: float, stale_seconds: float, size: int) -> None:
        self._fresh_seconds = fresh_seconds
        self._stale_seconds = stale_seconds
        self._size = size
        self._kept: OrderedDict[Hashable, _Kept[T]] = OrderedDict()
        self._asking: dict[Hashable, asyncio.Task[T]] = {}

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> Answer[T]:
        kept = self._kept.get(key)
        if kept is not None and time.monotonic() - kept.since < self._fresh_seconds:
            self._kept.move_to_end(key)
            return Answer(kept.value)
        try:
            # Shielded: one who gives up takes the answer from nobody else.
            return Answer(await asyncio.shield(self._ask_once(key, ask)))
        except UpstreamError as error:
            if kept is None or time.monotonic() - kept.since >= self._fresh_seconds + self._stale_seconds:
                raise
            logger.warning("an old answer stands in for a new one", reason=error.detail)
            return Answer(kept.value, is_stale=True)

    def _ask_once(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(key, ask))
            task.add_done_callback(_retrieve)
        return task

    async def _ask(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            value = await ask()
        finally:
            del self._asking[key]
        self._kept[key] = _Kept(value, time.monotonic())
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return value

    async def close(self) -> None:
        """Give up what is being asked."""
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _retrieve(task: asyncio.Task[T]) -> None:
    # Perhaps nobody waits any more; asyncio would log that nobody looked at the error.
    if not task.cancelled():
        task.exception()
