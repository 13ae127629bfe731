"""Copies of the database file, made and restored with SQLite's backup interface while other processes use it."""

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL

from app.core.db.backup import BackupError

SUFFIX = ".sqlite3"
LOCK_TIMEOUT_SECONDS = 60


def dump(url: URL, file: Path) -> None:
    try:
        with closing(_open(_path(url), "mode=rw")) as source, closing(_open(file, "mode=rw")) as copy:
            source.backup(copy)
            # Turn off WAL mode, in which a database has more than one file: the copy must be a single one.
            copy.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise BackupError(f"{_path(url)} cannot be backed up: {error}.") from error


def verify(file: Path) -> str | None:
    log = file.with_name(f"{file.name}-wal")
    if log.exists() and log.stat().st_size > 0:
        raise BackupError(
            f"{file} is a database in use: its last changes are in {log.name}. Make a copy with `db backup`."
        )
    try:
        with closing(_open(file, "mode=ro&immutable=1")) as copy:
            is_sound = copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            ((size,),) = copy.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
            revision = copy.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        raise BackupError(f"{file} is not a complete backup of this service: {error}.") from error
    if not is_sound or size != file.stat().st_size:
        raise BackupError(f"{file} is damaged.")
    return revision[0] if revision else None


def load(url: URL, file: Path) -> list[str]:
    """Restore the copy in one transaction: other processes see either all of the old data or all of the new data."""
    try:
        with closing(_open(file, "mode=ro&immutable=1")) as copy, closing(_open(_path(url), "mode=rwc")) as target:
            tables = {name for (name,) in target.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
            if tables and "alembic_version" not in tables:
                raise BackupError(
                    f"{_path(url)} is not a database of this service: correct DATABASE_URL or DATABASE_NAME."
                )
            copy.backup(target)
    except sqlite3.Error as error:
        raise BackupError(f"Nothing was restored to {_path(url)}: {error}.") from error
    return []


def _open(path: Path, options: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?{options}", uri=True, timeout=LOCK_TIMEOUT_SECONDS)


def _path(url: URL) -> Path:
    return Path(url.database or "")
