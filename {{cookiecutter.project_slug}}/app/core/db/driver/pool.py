import asyncio
import time
from collections import deque
from functools import cached_property
from typing import Any, NamedTuple

from sqlalchemy import PoolProxiedConnection
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_only

# After it, a connection that is lent goes back to where its age is looked at.
LENT_SECONDS = 60


class SharedConnection(NamedTuple):
    """A connection that is out of the pool, and goes from one that reads to the next one."""

    since: float
    connection: PoolProxiedConnection


class Waiter(NamedTuple):
    # A connection, or None: a place in the pool.
    turn: "asyncio.Future[SharedConnection | None]"
    reads: bool


class FairPool(AsyncAdaptedQueuePool):
    """Serve those who wait for a connection in the order they came, and none longer than the pool's timeout.

    SQLAlchemy's own queue lets a newcomer overtake a task that was just woken, which starves some of them under load.
    And the way through it costs as much as a query: who only reads takes what the last one read with (`lend`).
    """

    # Those at hand included.
    _taken = 0
    # When a connection turned out to be lost: those that are as old are, too.
    _lost_at = 0.0

    @property
    def in_use(self) -> int:
        return self._taken - len(self._idle_readers)

    @property
    def waiting(self) -> int:
        return sum(not waiter.turn.done() for waiter in self._waiters)

    @cached_property
    def _idle_readers(self) -> list[SharedConnection]:
        return []

    @cached_property
    def _waiters(self) -> deque[Waiter]:
        return deque()

    async def lend(self, engine: AsyncEngine) -> SharedConnection:
        """For one statement that runs by itself."""
        while self._idle_readers:
            lent = self._idle_readers.pop()
            if not self._is_old(lent):
                return lent
            lent.connection.close()
        if self._taken >= self.size():
            turn = await self._wait(reads=True)
            if turn is not None:
                return turn
            # Its place is taken again at once, in _do_get.
            self._taken -= 1
        return SharedConnection(time.monotonic(), await engine.raw_connection())

    def give_back(self, lent: SharedConnection) -> None:
        """Hand it to who waits, or keep it at hand; it must be in no transaction."""
        waiter = self._next()
        if self._is_old(lent) or (waiter is not None and not waiter.reads):
            lent.connection.close()
        elif waiter is None:
            self._idle_readers.append(lent)
        else:
            waiter.turn.set_result(lent)

    def lose(self, lent: SharedConnection, error: BaseException) -> None:
        """Close a connection whose server has gone, and no more use those that are as old."""
        self._invalidate(lent.connection, error)

    def replace_all(self) -> None:
        """Replace each connection that is open now when it is handed out next."""
        self._lost_at = time.monotonic()
        # SQLAlchemy's own time, for the connections that lie in the pool.
        self._invalidate_time = time.time()

    def _invalidate(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  # those of SQLAlchemy's
        """SQLAlchemy calls it where a session has lost its connection."""
        self._lost_at = time.monotonic()
        super()._invalidate(*arguments, **options)

    def _is_old(self, lent: SharedConnection) -> bool:
        return lent.since <= self._lost_at or time.monotonic() > lent.since + LENT_SECONDS

    def _do_get(self) -> ConnectionPoolEntry:
        if self._taken >= self.size():
            self._close(self._idle_readers[:1])
        if self._taken < self.size():
            self._taken += 1
        else:
            await_only(self._wait(reads=False))
        try:
            return super()._do_get()
        except BaseException:
            self._leave()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        try:
            super()._do_return_conn(record)
        finally:
            self._leave()

    def _leave(self) -> None:
        waiter = self._next()
        if waiter is None:
            self._taken -= 1
        else:
            waiter.turn.set_result(None)

    async def _wait(self, *, reads: bool) -> SharedConnection | None:
        loop = asyncio.get_running_loop()
        waiter = Waiter(loop.create_future(), reads)
        self._waiters.append(waiter)
        timer = loop.call_later(self.timeout(), self._give_up_waiting, waiter)
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            # Its turn may have come in the same moment: it is the next one's.
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self._pass_on(waiter.turn.result())
            raise
        finally:
            timer.cancel()

    def _give_up_waiting(self, waiter: Waiter) -> None:
        if not waiter.turn.done():
            waiter.turn.set_exception(PoolTimeoutError(f"no connection was free within {self.timeout():g} s"))

    def _pass_on(self, lent: SharedConnection | None) -> None:
        if lent is not None:
            self.give_back(lent)
        else:
            self._leave()

    def _next(self) -> Waiter | None:
        """Return the first one whose turn has not come, and forget those before it."""
        while self._waiters and self._waiters[0].turn.done():
            self._waiters.popleft()
        return self._waiters[0] if self._waiters else None

    def _close(self, lent: list[SharedConnection]) -> None:
        for each in lent:
            self._idle_readers.remove(each)
            each.connection.close()

    def dispose(self) -> None:
        self._close(self._idle_readers[:])
        super().dispose()
