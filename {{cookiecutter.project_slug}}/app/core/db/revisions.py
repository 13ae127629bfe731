"""The revision of the schema that the code needs, and a check that the database has it."""

import asyncio
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import Connection, String, column, select, table

from app.core.db.query import Query
from app.core.db.session import Session
from app.core.errors import AppError
from app.core.project import ROOT

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

REVISION = Query(select(column("version_num", String)).select_from(table("alembic_version")))
REPAIR = (
    "Give each migration its own number, in its file name and in `revision`, and set each `down_revision` to the"
    " migration before it."
)


def alembic_config(connection: Connection | None = None) -> "Config":
    from alembic.config import Config

    # Pass the current sys.stdout: Alembic's default is the value of sys.stdout when Alembic was imported.
    config = Config(ROOT / "alembic.ini", stdout=sys.stdout)
    # Escaped, because `%` begins an interpolation in alembic.ini.
    config.file_config["DEFAULT"]["here"] = ROOT.as_posix().replace("%", "%%")
    config.attributes["connection"] = connection
    return config


class MigrationsError(AppError):
    """The migrations do not form one chain, or do not fit the database."""


@dataclass(frozen=True)
class Revisions:
    """The revisions that this release knows."""

    head: str | None
    known: frozenset[str]

    def is_behind(self, revision: str | None) -> bool:
        return revision != self.head and not self.is_ahead(revision)

    def is_ahead(self, revision: str | None) -> bool:
        """Return whether the revision is unknown to this release, because a newer release has migrated the database."""
        return revision is not None and revision not in self.known


def read_migrations() -> "ScriptDirectory":
    """Return the migrations; raise MigrationsError if two have one number, or if the predecessor of one is missing."""
    # Imported lazily: a serving process needs Alembic only here, and not at its start.
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory.from_config(alembic_config())
    try:
        with warnings.catch_warnings():
            # Turn Alembic's warnings of duplicate and missing revisions into errors.
            warnings.filterwarnings("error", "Revision ")
            scripts.get_heads()
    except UserWarning as warning:
        raise MigrationsError(f"{warning}. {REPAIR}") from warning
    return scripts


@cache
def read_revisions() -> Revisions:
    """Return the revisions of this release; raise MigrationsError unless the migrations form one chain."""
    scripts = read_migrations()
    heads = sorted(scripts.get_heads())
    if len(heads) > 1:
        raise MigrationsError(
            f"Only one migration may be the last, but no migration follows {' and '.join(heads)}. With the one that"
            " should be the last, run in the project: python -m app db reparent REVISION"
        )
    known = frozenset(script.revision for script in scripts.walk_revisions())
    return Revisions(heads[0] if heads else None, known)


def head_revision() -> str | None:
    return read_revisions().head


async def is_up_to_date(session: Session) -> bool:
    """Return whether the schema is at head or ahead of it.

    Raise a database error if there is no schema, and MigrationsError for faulty migrations.
    """
    revision = await session.fetch_value(REVISION)
    # In a thread, because the first call imports Alembic and reads all migrations.
    revisions = await asyncio.to_thread(read_revisions)
    return not revisions.is_behind(revision)
