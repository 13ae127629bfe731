import pytest
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, make_url

from app.accounts.feature import DEMO_EMAIL
from app.core.db import migrations
from app.core.db.engine import create_owner_engine
from app.core.db.models import Base
from app.core.db.revisions import MigrationsError
from tests.support.accounts import create_account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import execute_async, make_settings


async def table_names(url: str) -> set[str]:
    engine = create_owner_engine(make_settings(url))
    try:
        async with engine.connect() as connection:
            return set(await connection.run_sync(_table_names))
    finally:
        await engine.dispose()


def _table_names(connection: Connection) -> list[str]:
    return inspect(connection).get_table_names()


async def test_migrations_go_up_and_down_and_up(empty_url: str) -> None:
    settings = make_settings(empty_url)

    await migrations.upgrade(settings)
    assert await table_names(empty_url) == {*Base.metadata.tables, "alembic_version"}
    await migrations.downgrade(settings, "base")
    assert await table_names(empty_url) == {"alembic_version"}
    await migrations.upgrade(settings)

    await migrations.check(settings)


async def test_each_migration_can_be_taken_back(empty_url: str) -> None:
    settings = make_settings(empty_url)
    await migrations.upgrade(settings)

    while (await table_names(empty_url)) != {"alembic_version"}:
        await migrations.downgrade(settings, "-1")


async def test_check_detects_model_without_migration(empty_url: str) -> None:
    settings = make_settings(empty_url)
    await migrations.upgrade(settings)
    engine = create_owner_engine(settings)
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: Base.metadata.tables["refresh_tokens"].drop(sync))
    await engine.dispose()

    with pytest.raises(CommandError, match="New upgrade operations"):
        await migrations.check(settings)


async def test_start_with_update_db_upgrades_schema_to_head(empty_url: str) -> None:
    async with open_client(create_app(make_settings(empty_url, update_db=True))) as client:
        response = await client.get("/health/ready")

    assert response.status_code == 200
    await migrations.check(make_settings(empty_url))


async def test_a_schema_of_a_newer_release_is_left_alone(live_url: str) -> None:
    settings = make_settings(live_url)
    await execute_async(live_url, "UPDATE alembic_version SET version_num = '9999'")

    assert not await migrations.upgrade(settings)
    for attempt in (migrations.check(settings), migrations.downgrade(settings, "-1")):
        with pytest.raises(MigrationsError, match="A newer release has migrated this database"):
            await attempt

    assert await execute_async(live_url, "SELECT version_num FROM alembic_version") == [("9999",)]


async def test_reset_drops_tables_and_views_unknown_to_migrations(live_url: str) -> None:
    is_sqlite = make_url(live_url).get_backend_name() == "sqlite"
    await execute_async(live_url, "CREATE TABLE left_over (user_id CHAR(32))")
    await execute_async(live_url, 'CREATE VIEW "all Users%" AS SELECT * FROM users')
    await execute_async(live_url, 'CREATE VIEW left_over_emails AS SELECT email FROM "all Users%"')
    if not is_sqlite:
        await execute_async(live_url, "CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM left_over_emails")

    async with open_client(create_app(make_settings(live_url, reset_db=True))) as client:
        response = await client.get("/health/ready")

    assert response.status_code == 200
    assert await table_names(live_url) == {*Base.metadata.tables, "alembic_version", "last_reset"}
    await execute_async(live_url, "CREATE TABLE left_over_emails (id INTEGER)")


async def test_workers_of_one_start_reset_database_once(empty_url: str) -> None:
    settings = make_settings(empty_url, reset_db=True)
    async with open_client(create_app(settings)) as client:
        user = await create_account(client)

    # A second worker of the same start, such as one that replaces a crashed worker.
    async with open_client(create_app(settings)):
        emails = await execute_async(empty_url, "SELECT email FROM users")

    assert (DEMO_EMAIL,) in emails
    assert (user.email,) in emails
