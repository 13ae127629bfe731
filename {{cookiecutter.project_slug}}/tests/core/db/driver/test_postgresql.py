"""Statements that PostgreSQL has prepared."""

import pytest
from sqlalchemy import select

from app.accounts.models import User
from app.core.db.query import Query
from app.core.db.session import open_database
from tests.support.databases import execute_async, make_settings, server_url

pytestmark = pytest.mark.skipif(server_url().startswith("sqlite"), reason="the tests run on SQLite")

NAMES = Query(select(User.name))
# More executions than the five after which psycopg prepares a statement on the server.
MANY = 8


async def test_reads_still_work_after_migration_changes_columns(live_url: str) -> None:
    async with open_database(make_settings(live_url)) as database, database.read() as session:
        for _ in range(MANY):
            await session.fetch_all(NAMES)
        await execute_async(live_url, "ALTER TABLE users ALTER COLUMN name TYPE VARCHAR(999)")

        assert await session.fetch_all(NAMES) == []
