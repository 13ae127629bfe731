import asyncio

from alembic import context
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.util import CommandError
from sqlalchemy import Connection

from app.core.config.load import load_settings_or_exit
from app.core.db import autogenerate
from app.core.db.migrations import locked_connection
from app.core.db.models import Base
from app.features import FEATURES
from app.startup import LAST_RESET

# Importing the features fills the metadata with their models.
assert FEATURES  # noqa: S101


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """Return False for the table that only development databases have: see app/startup.py."""
    return not (kind == "table" and name == LAST_RESET.name)


def complete(migration: MigrationContext, _revision: object, scripts: list[MigrationScript]) -> None:
    revisions = [script.revision for script in context.script.walk_revisions()]
    for script in scripts:
        autogenerate.complete(script, revisions, migration.dialect)


def require_foreign_keys(ctx: MigrationContext, step: MigrationInfo, heads: object, run_args: object) -> None:
    """Check foreign keys on SQLite, which does not enforce them during a migration: see app/core/db/migrations.py."""
    if ctx.dialect.name != "sqlite" or ctx.connection is None:
        return
    if violation := ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        table, _row, referred, _key = violation
        raise CommandError(
            f"Migration {step.up_revision_id} would leave rows in {table} that refer to missing rows of {referred}."
            " Delete or change these rows in the migration."
        )


def run_migrations(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        include_name=is_ours,
        render_item=autogenerate.render_item,
        process_revision_directives=complete,
        template_args={"docstring": autogenerate.docstring},
        on_version_apply=require_foreign_keys,
        # SQLite alters a table by copying it, within the transaction that our engine begins.
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()


async def run_with_own_connection() -> None:
    async with locked_connection(load_settings_or_exit()) as connection:
        await connection.run_sync(run_migrations)
        await connection.commit()


if context.is_offline_mode():
    raise CommandError("Offline mode is not supported: run the migrations against a database.")

connection: Connection | None = context.config.attributes.get("connection")
if connection is None:
    # Called by the `alembic` command, such as `alembic revision --autogenerate`.
    asyncio.run(run_with_own_connection())
else:
    run_migrations(connection)
