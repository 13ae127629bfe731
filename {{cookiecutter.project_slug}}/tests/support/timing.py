import asyncio
import time
from collections.abc import Awaitable, Callable

ROUNDS = 60


async def share_of_slower(one: Callable[[], Awaitable[None]], other: Callable[[], Awaitable[None]]) -> float:
    """Run the two functions in pairs, and return the share of pairs in which `one` is the slower function.

    Other load affects both functions equally: if they take the same time, a share of at most one in ten has a
    probability below 1e-6.
    """
    slower = 0
    for number in range(ROUNDS):
        seconds = {}
        for act in (one, other) if number % 2 else (other, one):
            started = time.perf_counter()
            await act()
            seconds[act] = time.perf_counter() - started
        slower += seconds[one] > seconds[other]
    return slower / ROUNDS


async def wait_until(condition: Callable[[], bool]) -> None:
    """Wait up to a minute; raises TimeoutError."""
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)
