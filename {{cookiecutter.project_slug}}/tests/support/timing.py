import time
from collections.abc import Awaitable, Callable

ROUNDS = 60


async def share_of_slower(one: Callable[[], Awaitable[None]], other: Callable[[], Awaitable[None]]) -> float:
    """Return how often the first is the slower one of a pair.

    Other load affects both equally: without a difference, a share of one in ten has a probability below 1e-6.
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
