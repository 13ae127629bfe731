"""Limits per account: MAX_ROWS_PER_USER rows of each kind, and THROTTLE_ACCOUNT_CHANGES changes of the account."""

from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, func, select

from app.core.context import Context
from app.core.db.query import Query
from app.core.db.session import Session
from app.core.errors import ConflictError
from app.core.security.throttling import AttemptCounter

# Key of `Database.info`. Only the lifespan of the service sets it: commands of operators have no quotas.
QUOTAS = "accounts.quotas"
# The rows that a process admits before it counts again: at most MAX_BATCH, and at most BATCH_SHARE of the remaining
# quota.
MAX_BATCH, BATCH_SHARE = 100, 1 / 16
MAX_BATCHES = 10_000


def count_rows(statement: Select[Any]) -> Query[tuple[int]]:
    """Build the query that counts an account's rows; `statement` selects them by the parameter `owner`."""
    return Query(select(func.count()).select_from(statement.limit(bindparam("at_most")).subquery()))


async def require_quota(session: Session, rows: Query[tuple[int]], owner_id: UUID) -> None:
    """Call before each INSERT of a row that an account owns. Raises ConflictError if the account has too many rows."""
    quotas: Quotas | None = session.info.get(QUOTAS)
    if quotas is not None:
        await quotas.take(session, rows, owner_id)


async def commit_and_limit_changes(ctx: Context, kind: str, user_id: UUID) -> None:
    """Commit, and count a change that users make to their own account. Raises TooManyRequestsError.

    The number is limited because each change writes audit events, which are kept for a long time.
    """
    counter = AttemptCounter(f"change of account: {kind}", str(user_id), ctx.settings.throttle_account_changes)
    await ctx.throttle.commit_and_take(ctx.session, counter)


class Quotas:
    """Counts the rows of an account once for a batch of inserts, since counting 10,000 rows takes a millisecond.

    Each process may exceed the limit by a batch and by the requests that it serves at the same time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._batches: dict[tuple[Query[tuple[int]], UUID], int] = {}

    async def take(self, session: Session, rows: Query[tuple[int]], owner_id: UUID) -> None:
        key = rows, owner_id
        if not self._batches.get(key):
            stored = await session.fetch_value(rows, owner=owner_id, at_most=self._limit) or 0
            left = self._limit - stored
            if left <= 0:
                raise ConflictError(
                    f"The account stores {self._limit:,} items of this type, which is the maximum. Delete some of them;"
                    " a deleted file counts for one more day.",
                    code="quota-exceeded",
                )
            if len(self._batches) >= MAX_BATCHES:
                self._batches.clear()
            # During the query, another request may have begun a batch: continue this batch.
            self._batches[key] = self._batches.get(key) or max(1, min(MAX_BATCH, int(left * BATCH_SHARE)))
        self._batches[key] -= 1
