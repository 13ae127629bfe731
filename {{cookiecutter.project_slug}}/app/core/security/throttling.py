"""Throttling of guesses and of other suspicious repetitions; not a rate limiter for ordinary use.

Attempts are counted in the database, so that the bounds hold across workers and hosts.
"""

import asyncio
import hashlib
import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from sqlalchemy import Double, String, bindparam, delete, literal_column, select, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.config.settings import Settings
from app.core.db.models import Base
from app.core.db.query import Command, Query, columns, delete_batch
from app.core.db.session import Database, Session
from app.core.errors import TooManyRequestsError

logger = structlog.get_logger(__name__)
FIRST_DELAY_SECONDS = 1.0
# A customer of a provider has at least a /64, and gets a /48, 65,536 of these networks, on request (RFC 6177).
IPV6_NETWORK_BITS, IPV6_SITE_BITS = 64, 48
# Many customers may share a /48: it may make this many times as many attempts as a /64.
SITE_ALLOWANCE = 10
# How long other attempts wait for an undecided one, and the first and the longest pause between their tries.
UNDECIDED_SECONDS = 10
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0
# How many attempts may wait in one process: each of them is a request that takes the place of another.
MAX_WAITING = 20


class ThrottleCount(Base):
    """The attempts of one kind from one source; times are seconds since the epoch."""

    __tablename__ = "throttle_counts"

    # Hashed: it is as long as its longest part, which strangers choose, and may be the address of a person.
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempts: Mapped[int]
    # How many of the attempts are not decided yet.
    undecided: Mapped[int] = mapped_column(server_default=text("0"))
    delay_seconds: Mapped[float]
    last_at: Mapped[float]


class CountRecord(NamedTuple):
    attempts: int


class StateRecord(NamedTuple):
    undecided: int
    seconds_since: float
    delay_seconds: float


class ClockedStatements:
    """The statements that read a clock: that of the database, since the clocks of several hosts may differ."""

    def __init__(self, now: str) -> None:
        # One statement decides, whatever runs beside it: a row comes back when the attempt may go on. The upsert is
        # written the way that both databases understand; `excluded.last_at` is now. Without a delay, times are not
        # compared: concurrent attempts may commit out of the order in which they read the clock.
        self.count = Query(
            text(f"""
            INSERT INTO throttle_counts (key, attempts, undecided, delay_seconds, last_at)
            VALUES (:key, 1, :undecided, CASE WHEN :free_attempts <= 1 THEN :first_delay ELSE 0 END, {now})
            ON CONFLICT (key) DO UPDATE SET
                attempts = CASE
                    WHEN throttle_counts.last_at <= excluded.last_at - :memory_seconds THEN 1
                    ELSE throttle_counts.attempts + 1
                END,
                undecided = :undecided + CASE
                    WHEN throttle_counts.last_at <= excluded.last_at - :undecided_seconds THEN 0
                    ELSE throttle_counts.undecided
                END,
                delay_seconds = CASE
                    WHEN throttle_counts.last_at <= excluded.last_at - :memory_seconds THEN 0
                    WHEN throttle_counts.attempts + 1 < :free_attempts THEN 0
                    WHEN throttle_counts.delay_seconds = 0 THEN :first_delay
                    WHEN throttle_counts.delay_seconds * 2 > :max_delay THEN :max_delay
                    ELSE throttle_counts.delay_seconds * 2
                END,
                last_at = excluded.last_at
            WHERE throttle_counts.delay_seconds = 0
                OR throttle_counts.last_at + throttle_counts.delay_seconds <= excluded.last_at
            RETURNING attempts
            """).columns(ThrottleCount.attempts),  # noqa: S608  # `now` is one of the two constants of CLOCKED, never input
            CountRecord,
        )
        seconds_since = literal_column(f"({now})", Double) - ThrottleCount.last_at
        self.state = Query(
            select(*columns(StateRecord, ThrottleCount, seconds_since=seconds_since)).where(
                ThrottleCount.key == bindparam("count_key")
            ),
            StateRecord,
        )
        self.purge = delete_batch(ThrottleCount, seconds_since >= bindparam("memory_seconds"))


CLOCKED = {
    "postgresql": ClockedStatements("CAST(extract(epoch FROM clock_timestamp()) AS double precision)"),
    # To the millisecond; `unixepoch` knows no fractions before SQLite 3.42.
    "sqlite": ClockedStatements("(julianday('now') - 2440587.5) * 86400"),
}
GIVE_BACK = Command(
    text("""
    UPDATE throttle_counts
    SET attempts = attempts - 1,
        undecided = CASE WHEN undecided > 0 THEN undecided - 1 ELSE 0 END,
        delay_seconds = CASE WHEN attempts <= :free_attempts THEN 0 ELSE delay_seconds / 2 END
    WHERE key = :key AND attempts > 0
    """)
)
DECIDE = Command(text("UPDATE throttle_counts SET undecided = undecided - 1 WHERE key = :key AND undecided > 0"))
FORGET = Command(delete(ThrottleCount).where(ThrottleCount.key == bindparam("count_key")))


@dataclass(frozen=True)
class AttemptCounter:
    """Attempts counted together: the first `free_attempts` cost no time, each further one doubles the delay."""

    kind: str
    source: str
    free_attempts: int
    # Whether the caller reports the outcome of each attempt, with `forget`, `give_back` or `decide`.
    is_decided: bool = False

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.kind}:{self.source}".encode("utf-8", "surrogatepass")).hexdigest()


class UndecidedError(Exception):
    """Undecided attempts hold all free ones, but may still be given back."""


class GuessThrottle:
    """Counts attempts at passwords and codes, sign-ups and requests for messages, and refuses too many of them.

    A count does not decay while attempts go on, only after THROTTLE_MEMORY_SECONDS without any: a client that calls a
    route steadily is refused for longer and longer. Call `forget` or `give_back` after an attempt that succeeded, and
    `decide` after one that failed if the counter has `is_decided`.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._waiting = 0

    async def count(
        self, *counters: AttemptCounter, tolerated: Sequence[AttemptCounter] = ()
    ) -> TooManyRequestsError | None:
        """Count an attempt before it is made, so that many at once are no way around.

        While attempts that are not decided yet use up the free ones, it waits for their outcome, UNDECIDED_SECONDS at
        most. Uses a separate connection: the caller must hold none. Raises TooManyRequestsError; what one of the
        tolerated raises is returned, for attempts that are refused only if they fail.
        """
        if not self._settings.throttling:
            return None
        loop = asyncio.get_running_loop()
        deadline = loop.time() + UNDECIDED_SECONDS
        pause = FIRST_PAUSE_SECONDS
        while True:
            waits = loop.time() < deadline and self._waiting < MAX_WAITING
            try:
                return await self._count_all(counters, tolerated, waits=waits)
            except UndecidedError:
                # The transaction is rolled back, and no connection is held.
                self._waiting += 1
                try:
                    await asyncio.sleep(pause)
                finally:
                    self._waiting -= 1
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2)

    async def _count_all(
        self, counters: Sequence[AttemptCounter], tolerated: Sequence[AttemptCounter], *, waits: bool
    ) -> TooManyRequestsError | None:
        async with self._database.write() as session:
            for counter in counters:
                await self._count(session, counter, waits=waits)
            try:
                for counter in tolerated:
                    await self._count(session, counter, waits=False)
            except TooManyRequestsError as error:
                return error
        return None

    async def _count(self, session: Session, counter: AttemptCounter, *, waits: bool) -> None:
        clocked = _clocked(session)
        counted = await session.fetch_one_or_none(
            clocked.count,
            key=counter.key,
            free_attempts=counter.free_attempts,
            undecided=int(counter.is_decided),
            undecided_seconds=float(UNDECIDED_SECONDS),
            first_delay=min(FIRST_DELAY_SECONDS, self._settings.throttle_max_delay_seconds),
            max_delay=float(self._settings.throttle_max_delay_seconds),
            memory_seconds=float(self._settings.throttle_memory_seconds),
        )
        if counted is None:
            state = await session.fetch_one_or_none(clocked.state, count_key=counter.key)
            is_undecided = state is None or (state.undecided > 0 and state.seconds_since < UNDECIDED_SECONDS)
            if waits and is_undecided:
                raise UndecidedError
            logger.warning("throttled", counter=counter.kind)
            wait = state.delay_seconds - state.seconds_since if state else 0
            raise TooManyRequestsError(max(1, math.ceil(wait)))

    async def admits(self, session: Session, *counters: AttemptCounter) -> bool:
        """Count in the caller's transaction, and return False instead of raising.

        For work that is skipped beyond the limit.
        """
        if not self._settings.throttling:
            return True
        try:
            for counter in counters:
                await self._count(session, counter, waits=False)
        except TooManyRequestsError:
            return False
        return True

    async def decide(self, session: Session, counter: AttemptCounter) -> None:
        """Record that an attempt failed; it stays counted."""
        if self._settings.throttling:
            await session.run(DECIDE, key=counter.key)

    async def give_back(self, session: Session, counter: AttemptCounter) -> None:
        """Take back one attempt, which succeeded, and leave the others counted."""
        if self._settings.throttling:
            await session.run(GIVE_BACK, key=counter.key, free_attempts=counter.free_attempts)

    async def forget(self, session: Session, counter: AttemptCounter) -> None:
        """Reset the counter after a success."""
        if self._settings.throttling:
            await session.run(FORGET, count_key=counter.key)


async def purge_counts(session: Session, settings: Settings) -> int:
    """Delete what is forgotten, and return how many counts that were."""
    return await session.run(_clocked(session).purge, memory_seconds=float(settings.throttle_memory_seconds))


def _clocked(session: Session) -> ClockedStatements:
    return CLOCKED[session.get_bind().dialect.name]


def count_origin(
    kind: str, address: str | None, settings: Settings, *, is_decided: bool = False
) -> list[AttemptCounter]:
    """Return the counters of where an attempt comes from, in the order in which they are to be counted.

    The site comes last: what its network refuses does not count against the neighbours.
    """
    network, site = network_of(address), network_of(address, IPV6_SITE_BITS)
    free = settings.throttle_address_attempts
    counters = [AttemptCounter(kind, network, free, is_decided)]
    if site != network:
        counters.append(AttemptCounter(kind, site, free * SITE_ALLOWANCE, is_decided))
    return counters


def network_of(address: str | None, ipv6_bits: int = IPV6_NETWORK_BITS) -> str:
    """Return the address, or the network of an IPv6 address, whose owner has more addresses than can be counted."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, ipv6_bits), strict=False))
