"""Rate limits: GuessThrottle for guesses and other suspicious repetitions, RateLimit for expensive requests.

GuessThrottle counts in the database, so that its limits hold across workers and hosts. RateLimit counts in the process.
"""

import asyncio
import hashlib
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

import structlog
from sqlalchemy import Double, String, bindparam, delete, literal_column, select, text
from sqlalchemy.orm import Mapped, mapped_column

from app.core.config.settings import Settings
from app.core.db.models import Base
from app.core.db.query import Command, Query, columns, delete_batch
from app.core.db.session import Database, Session, commit_and_release
from app.core.errors import TooManyRequestsError

logger = structlog.get_logger(__name__)
FIRST_DELAY_SECONDS = 1.0
# An Internet provider assigns each customer one network, whose size is between /64 and /48 (RFC 6177). A /48 contains
# 65,536 networks of the size /64.
IPV6_NETWORK_BITS, IPV6_SITE_BITS = 64, 48
# Factor by which a /48 has more free attempts than a /64, because many customers may share a /48.
SITE_ALLOWANCE = 10
# How long an attempt waits, at most, for earlier ones whose outcome is not known yet.
UNDECIDED_SECONDS = 10
# A waiting attempt polls its counter: each pause is twice as long as the one before, up to LONGEST_PAUSE_SECONDS.
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 1.0
# Maximum number of attempts that wait in one process: each occupies one of MAX_CONCURRENT_REQUESTS.
MAX_WAITING = 20
# Key of `Database.info`, under which the throttles of a process count the attempts that wait.
WAITING = "throttling.waiting"
# Maximum number of accounts in a RateLimit, which evicts the account with the least recent request.
MAX_BUCKETS = 10_000


class ThrottleCount(Base):
    """The attempts of one kind from one source; times are seconds since the epoch."""

    __tablename__ = "throttle_counts"

    # A hash: the source may be personal data, such as an e-mail address, and of any length.
    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    attempts: Mapped[int]
    # Attempts whose outcome is not known yet.
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
    """Statements that read the database's clock, since the clocks of several hosts may differ."""

    def __init__(self, now: str) -> None:
        # Counts an attempt atomically, and returns a row only if the attempt is allowed. `excluded.last_at` is the
        # current time. While the delay is 0, times are not compared: concurrent attempts may commit in another order
        # than they read the clock, so that a comparison could refuse an allowed attempt.
        self.take = Query(
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
    # Precise to the millisecond; `unixepoch` has no fractions before SQLite 3.42.
    "sqlite": ClockedStatements("(julianday('now') - 2440587.5) * 86400"),
}
REFUND = Command(
    text("""
    UPDATE throttle_counts
    SET attempts = attempts - 1,
        undecided = CASE WHEN undecided > 0 THEN undecided - 1 ELSE 0 END,
        delay_seconds = CASE WHEN attempts <= :free_attempts THEN 0 ELSE delay_seconds / 2 END
    WHERE key = :key AND attempts > 0
    """)
)
MARK_FAILED = Command(text("UPDATE throttle_counts SET undecided = undecided - 1 WHERE key = :key AND undecided > 0"))
RESET = Command(delete(ThrottleCount).where(ThrottleCount.key == bindparam("count_key")))


@dataclass(frozen=True)
class AttemptCounter:
    """A counter for the attempts of one kind from one source.

    The first `free_attempts` are not delayed, and each further one doubles the delay.
    """

    kind: str
    source: str
    free_attempts: int
    # Whether the caller reports the outcome of each attempt, by `reset`, `refund` or `mark_failed`.
    reports_outcome: bool = False

    @property
    def key(self) -> str:
        return hashlib.sha256(f"{self.kind}:{self.source}".encode("utf-8", "surrogatepass")).hexdigest()


class UndecidedError(Exception):
    """The free attempts are used up, but some of them may still be refunded, because their outcome is not known yet."""


class GuessThrottle:
    """Limits attempts at passwords and codes, sign-ups, requests for messages, and changes of an account.

    Without a success, a counter expires only after THROTTLE_MEMORY_SECONDS without attempts, so the delays of a client
    that keeps trying grow until they reach THROTTLE_MAX_DELAY_SECONDS. After an attempt that succeeded, call `reset`
    (forgets all attempts) or `refund` (takes back this one, for a counter that others share). After one that failed,
    call `mark_failed` if the counter has `reports_outcome`.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings

    async def commit_and_take(
        self, session: Session, *counters: AttemptCounter, deferred: Sequence[AttemptCounter] = ()
    ) -> TooManyRequestsError | None:
        """Commit, release the connection, and count an attempt before it is made.

        Raises TooManyRequestsError if one of the `counters` refuses the attempt. If one of `deferred` does, returns the
        error, which the caller may raise if the attempt fails. While attempts with an unknown outcome use up the
        free ones, the method waits for their outcome, at most UNDECIDED_SECONDS. Counting uses a separate transaction,
        so that concurrent attempts cannot get around the limit.
        """
        await commit_and_release(session)
        if not self._settings.throttling:
            return None
        loop, info = asyncio.get_running_loop(), self._database.info
        deadline = loop.time() + UNDECIDED_SECONDS
        pause = FIRST_PAUSE_SECONDS
        while True:
            waits = loop.time() < deadline and info.get(WAITING, 0) < MAX_WAITING
            try:
                return await self._take_all(counters, deferred, waits=waits)
            except UndecidedError:
                # The transaction has been rolled back: the attempt holds no connection while it waits.
                info[WAITING] = info.get(WAITING, 0) + 1
                try:
                    await asyncio.sleep(pause)
                finally:
                    info[WAITING] -= 1
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2)

    async def _take_all(
        self, counters: Sequence[AttemptCounter], deferred: Sequence[AttemptCounter], *, waits: bool
    ) -> TooManyRequestsError | None:
        async with self._database.write() as session:
            for counter in counters:
                await self._take(session, counter, waits=waits)
            try:
                for counter in deferred:
                    await self._take(session, counter, waits=False)
            except TooManyRequestsError as error:
                return error
        return None

    async def _take(self, session: Session, counter: AttemptCounter, *, waits: bool) -> None:
        clocked = _clocked(session)
        counted = await session.fetch_one_or_none(
            clocked.take,
            key=counter.key,
            free_attempts=counter.free_attempts,
            undecided=int(counter.reports_outcome),
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

    async def try_take(self, session: Session, *counters: AttemptCounter) -> bool:
        """Count an attempt in the session's transaction, and return whether it is allowed."""
        if not self._settings.throttling:
            return True
        try:
            for counter in counters:
                await self._take(session, counter, waits=False)
        except TooManyRequestsError:
            return False
        return True

    async def mark_failed(self, session: Session, counter: AttemptCounter) -> None:
        """Record that an attempt failed; it stays counted."""
        if self._settings.throttling:
            await session.run(MARK_FAILED, key=counter.key)

    async def refund(self, session: Session, counter: AttemptCounter) -> None:
        """Subtract one attempt from the counter, for instance because the attempt succeeded."""
        if self._settings.throttling:
            await session.run(REFUND, key=counter.key, free_attempts=counter.free_attempts)

    async def reset(self, session: Session, counter: AttemptCounter) -> None:
        """Set the counter to zero after a success."""
        if self._settings.throttling:
            await session.run(RESET, count_key=counter.key)


class RateLimit:
    """Allows each account `per_minute` requests a minute in this process; all may arrive at once (token bucket)."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        # The tokens of each account and the time of its last request, in the order of these times.
        self._buckets: OrderedDict[UUID, tuple[float, float]] = OrderedDict()

    def take(self, account_id: UUID) -> None:
        """Count a request of the account; raises TooManyRequestsError if the limit is exceeded."""
        now = self._clock()
        tokens, last_at = self._buckets.pop(account_id, (float(self._per_minute), now))
        tokens = min(self._per_minute, tokens + (now - last_at) * self._per_minute / 60)
        is_allowed = tokens >= 1
        self._buckets[account_id] = (tokens - is_allowed, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        if not is_allowed:
            raise TooManyRequestsError(math.ceil((1 - tokens) * 60 / self._per_minute))


async def purge_counts(session: Session, settings: Settings) -> int:
    """Delete counters without recent attempts, and return their number."""
    return await session.run(_clocked(session).purge, memory_seconds=float(settings.throttle_memory_seconds))


def _clocked(session: Session) -> ClockedStatements:
    return CLOCKED[session.get_bind().dialect.name]


def client_counters(
    kind: str, address: str | None, settings: Settings, *, reports_outcome: bool = False
) -> list[AttemptCounter]:
    """Return the counters of a client's network, in the order in which to take them.

    The site (/48) comes last: an attempt that the network's own counter refuses must not count against other
    networks of the site.
    """
    network, site = network_of(address), network_of(address, IPV6_SITE_BITS)
    free = settings.throttle_address_attempts
    counters = [AttemptCounter(kind, network, free, reports_outcome)]
    if site != network:
        counters.append(AttemptCounter(kind, site, free * SITE_ALLOWANCE, reports_outcome))
    return counters


def network_of(address: str | None, ipv6_bits: int = IPV6_NETWORK_BITS) -> str:
    """Return an IPv4 address, or the network of an IPv6 address, because a client has a whole /64; else `unknown`."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, ipv6_bits), strict=False))
