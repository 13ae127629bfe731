"""Quotas of one account hold for concurrent requests."""

import asyncio
from uuid import UUID, uuid4

import pytest
from sqlalchemy import bindparam, insert, select

from app.accounts.models import KnownNetwork
from app.accounts.quotas import MAX_BATCH, QUOTAS, Quotas, count_rows, require_quota
from app.core.db.models import utc_now
from app.core.db.query import Command
from app.core.db.session import Database, Session, open_database
from app.core.errors import ConflictError
from tests.support.accounts import Account, create_account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings

ROWS = count_rows(select(KnownNetwork.network).where(KnownNetwork.user_id == bindparam("owner")))
ADD = Command(insert(KnownNetwork))


async def add(session: Session, owner_id: UUID) -> None:
    await require_quota(session, ROWS, owner_id)
    await session.run(ADD, user_id=owner_id, network=uuid4().hex, last_used_at=utc_now())


async def add_until_refused(database: Database, owner_id: UUID, at_most: int) -> int:
    for count in range(at_most):
        try:
            async with database.write() as session:
                await add(session, owner_id)
        except ConflictError:
            return count
    return at_most


@pytest.mark.parametrize("limit", [1, 20, 300])
async def test_one_process_stores_no_row_beyond_the_limit(database: Database, user: Account, limit: int) -> None:
    database.info[QUOTAS] = Quotas(limit)
    own_network = 1

    added = await add_until_refused(database, UUID(user.id), 2 * limit)

    assert own_network + added == max(limit, own_network)


async def test_each_further_process_exceeds_the_limit_by_a_batch_at_most(database: Database, user: Account) -> None:
    limit, processes = 4000, 3
    stored = 1
    quotas = [Quotas(limit) for _ in range(processes)]
    # Each process counts the rows while there are few, and reserves a batch that it may add without counting again.
    for each in quotas:
        database.info[QUOTAS] = each
        stored += await add_until_refused(database, UUID(user.id), 1)

    for each in quotas:
        database.info[QUOTAS] = each
        stored += await add_until_refused(database, UUID(user.id), 2 * limit)

    assert limit <= stored <= limit + (processes - 1) * MAX_BATCH


async def test_concurrent_requests_exceed_the_limit_by_at_most_their_number(live_url: str) -> None:
    limit, at_once = 10, 5
    settings = make_settings(live_url, database_pool_size=at_once)
    async with open_client(create_app(settings)) as client:
        user = await create_account(client)
    async with open_database(settings) as database:
        database.info[QUOTAS] = Quotas(limit)
        await asyncio.gather(*(add_until_refused(database, UUID(user.id), 2 * limit) for _ in range(at_once)))

        async with database.read() as session:
            stored = await session.fetch_value(ROWS, owner=UUID(user.id), at_most=3 * limit)
    assert stored is not None
    assert limit <= stored < limit + at_once
