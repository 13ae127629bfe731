"""Password hashing; the only module that uses passlib."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio
import anyio.to_thread
from passlib.context import CryptContext

from app.core.config.settings import Settings
from app.core.errors import UnavailableError
from app.core.security.password_strength import normalize_password


@dataclass(frozen=True)
class PasswordCheck:
    is_correct: bool
    # A hash with the current parameters, if the stored one has others.
    new_hash: str | None = None


class PasswordHasher:
    """Hashes and verifies passwords (Argon2id) in threads; limits the number of threads and of waiting requests."""

    def __init__(self, settings: Settings) -> None:
        self._context = CryptContext(
            schemes=["argon2"],
            argon2__time_cost=settings.password_hash_time_cost,
            argon2__memory_cost=settings.password_hash_memory_cost,
            argon2__parallelism=settings.password_hash_parallelism,
        )
        # A separate limiter, so that hashing neither uses up the default limit of threads nor takes unbounded memory.
        self._limiter = anyio.CapacityLimiter(settings.password_hash_concurrency)
        queue = settings.password_hash_queue or settings.max_concurrent_requests // 4
        self._free_slots = settings.password_hash_concurrency + queue

    @contextmanager
    def reserve(self) -> Iterator[None]:
        """Reserve a slot in the queue before an attempt is counted; raises UnavailableError if the queue is full.

        Without a bound, requests waiting for a hash would occupy all of MAX_CONCURRENT_REQUESTS.
        """
        if self._free_slots == 0:
            raise UnavailableError(
                "Too many passwords are being checked or set at the same time. Try again in a moment.", code="busy"
            )
        self._free_slots -= 1
        try:
            yield
        finally:
            self._free_slots += 1

    async def hash(self, password: str) -> str:
        return await anyio.to_thread.run_sync(self._hash, password, limiter=self._limiter)

    def _hash(self, password: str) -> str:
        password_hash: str = self._context.hash(normalize_password(password))
        return password_hash

    async def verify(self, password: str, password_hash: str | None) -> PasswordCheck:
        """Check a password. For an unknown user, pass None as the hash: the check takes as long as for a known user."""
        return await anyio.to_thread.run_sync(self._verify, password, password_hash, limiter=self._limiter)

    def _verify(self, password: str, password_hash: str | None) -> PasswordCheck:
        if password_hash is None:
            self._context.dummy_verify()
            return PasswordCheck(is_correct=False)
        try:
            is_correct, new_hash = self._context.verify_and_update(normalize_password(password), password_hash)
        # The password is too long, or the stored hash has an unknown format.
        except ValueError:
            self._context.dummy_verify()
            return PasswordCheck(is_correct=False)
        return PasswordCheck(is_correct, new_hash)
