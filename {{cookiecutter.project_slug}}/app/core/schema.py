"""Which schema the code needs, and whether the database has it."""

import asyncio
import sys
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import Connection, String, column, select, table

from app.core.database import Session
from app.core.project import ROOT
from app.core.query import Query

if TYPE_CHECKING:
    from alembic.config import Config

REVISION = Query(select(column("version_num", String)).select_from(table("alembic_version")))


def alembic_config(connection: Connection | None = None) -> "Config":
    from alembic.config import Config

    # Its default is what was the output when Alembic was imported.
    config = Config(ROOT / "alembic.ini", stdout=sys.stdout)
    config.attributes["connection"] = connection
    return config


@cache
def head_revision() -> str | None:
    # Not above: a process that serves needs Alembic for this alone, and not at its start.
    from alembic.script import ScriptDirectory

    return ScriptDirectory.from_config(alembic_config()).get_current_head()


async def is_at_head(session: Session) -> bool:
    """Raises a database error when there is no schema at all."""
    revision = await session.fetch_value(REVISION)
    # In a thread: the first time it imports Alembic and reads all migrations.
    return revision == await asyncio.to_thread(head_revision)
