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

# The features' models are what fills the metadata.
assert FEATURES  # noqa: S101


def is_ours(name: str | None, kind: str, _parents: object) -> bool:
    """A mark that only a development database has; see app/startup.py."""
    return not (kind == "table" and name == LAST_RESET.name)


def complete(migration: MigrationContext, _revision: object, scripts: list[MigrationScript]) -> None:
    revisions = [script.revision for script in context.script.walk_revisions()]
    for script in scripts:
        autogenerate.complete(script, revisions, migration.dialect)


def require_foreign_keys(ctx: MigrationContext, step: MigrationInfo, heads: object, run_args: object) -> None:
    """SQLite enforces none during a migration (see app/core/db/migrations.py); PostgreSQL has done so already."""
    if ctx.dialect.name != "sqlite" or ctx.connection is None:
        return
    if violation := ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").first():
        table, _row, referred, _key = violation
        raise CommandError(
            f"Migration {step.up_revision_id} would leave rows in {table} that refer to missing rows of {referred}:"
            " delete or change them in the migration."
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
        # SQLite changes a table by copying it; our engine makes even that part of the transaction.
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
    raise CommandError("There is no offline mode: migrations are run, and tested, against a real database.")

connection: Connection | None = context.config.attributes.get("connection")
if connection is None:
    # `alembic` itself, for instance `alembic revision --autogenerate`.
    asyncio.run(run_with_own_connection())
else:
    run_migrations(connection)
