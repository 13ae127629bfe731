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

# After this time, a shared connection returns to the pool, where `pool_recycle` limits its age.
SHARED_SECONDS = 60


class SharedConnection(NamedTuple):
    """A connection that is checked out of the pool, and that one autocommitted statement hands to the next one."""

    since: float
    connection: PoolProxiedConnection


class Waiter(NamedTuple):
    # The result is a shared connection, or None for a free slot of the pool.
    turn: "asyncio.Future[SharedConnection | None]"
    reads: bool


class FairPool(AsyncAdaptedQueuePool):
    """A pool that serves waiting tasks first come, first served, each for at most the pool's timeout.

    SQLAlchemy's own queue lets a newcomer overtake a task that was just woken, which starves some tasks under load.

    A checkout costs as much as a query. Autocommitted statements avoid it: they share connections that stay checked
    out (`acquire_shared`).
    """

    # Number of connections in use, plus the idle shared ones.
    _taken = 0
    # Time of the last disconnect or `replace_all`: shared connections from before this time are not used again.
    _lost_at = 0.0

    def checkedout(self) -> int:
        """Return the number of connections in use, without the idle shared ones."""
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

    async def acquire_shared(self, engine: AsyncEngine) -> SharedConnection:
        """Return a connection for one autocommitted statement.

        After the statement, pass the connection to `release_shared`. After an error, pass a lost connection to
        `discard`, and close any other.
        """
        while self._idle_readers:
            shared = self._idle_readers.pop()
            if not self._is_old(shared):
                return shared
            shared.connection.close()
        if self._taken >= self.size():
            turn = await self._wait(reads=True)
            if turn is not None:
                return turn
            # Free the slot: `raw_connection` calls `_do_get`, which takes the slot again at once.
            self._taken -= 1
        return SharedConnection(time.monotonic(), await engine.raw_connection())

    def release_shared(self, shared: SharedConnection) -> None:
        """Hand the connection to the next waiting statement, or keep it idle if no task waits.

        The connection must be in no transaction. An old connection returns to the pool instead, and so does any
        connection while a session is first in the queue.
        """
        waiter = self._next()
        if self._is_old(shared) or (waiter is not None and not waiter.reads):
            shared.connection.close()
        elif waiter is None:
            self._idle_readers.append(shared)
        else:
            waiter.turn.set_result(shared)

    def discard(self, shared: SharedConnection, error: BaseException) -> None:
        """Close a lost connection, and stop using the shared connections that are open now."""
        self._invalidate(shared.connection, error)

    def replace_all(self) -> None:
        """Replace all connections that are open at this moment, each before its next use."""
        self._lost_at = time.monotonic()
        # At checkout, SQLAlchemy replaces a connection that was opened before `_invalidate_time`.
        self._invalidate_time = time.time()

    def _invalidate(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  # SQLAlchemy's parameters
        """Record the time of a disconnect; SQLAlchemy calls this method when a session has lost its connection."""
        self._lost_at = time.monotonic()
        super()._invalidate(*arguments, **options)

    def _is_old(self, shared: SharedConnection) -> bool:
        return shared.since <= self._lost_at or time.monotonic() > shared.since + SHARED_SECONDS

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
        timer = loop.call_later(self.timeout(), self._time_out, waiter)
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            # The future may have been resolved before the cancellation arrived: pass its result on to the next waiter.
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                self._pass_on(waiter.turn.result())
            raise
        finally:
            timer.cancel()

    def _time_out(self, waiter: Waiter) -> None:
        if not waiter.turn.done():
            waiter.turn.set_exception(PoolTimeoutError(f"no connection was free within {self.timeout():g} s"))

    def _pass_on(self, shared: SharedConnection | None) -> None:
        if shared is not None:
            self.release_shared(shared)
        else:
            self._leave()

    def _next(self) -> Waiter | None:
        """Return the first waiter that is still waiting; remove the earlier ones, whose wait has ended."""
        while self._waiters and self._waiters[0].turn.done():
            self._waiters.popleft()
        return self._waiters[0] if self._waiters else None

    def _close(self, shared: list[SharedConnection]) -> None:
        for each in shared:
            self._idle_readers.remove(each)
            each.connection.close()

    def dispose(self) -> None:
        self._close(self._idle_readers[:])
        super().dispose()
