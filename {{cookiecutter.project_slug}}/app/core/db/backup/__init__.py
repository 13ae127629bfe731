"""Backups of the database: each is one file, written atomically and verified before older backups are removed."""

import os
import tempfile
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from sqlalchemy import URL

from app.core.db.revisions import read_revisions
from app.core.filesystem import sync_path
from app.core.project import read_project

# Unfinished files that are older than this belong to killed processes, and are removed.
STALE_SECONDS = 24 * 3600


class BackupError(Exception):
    """The backup or restore failed; the message tells an operator the cause and the remedy."""


class BackupBackend(Protocol):
    """The interface of the modules `app/core/db/backup/<kind>.py`, one for each kind of database."""

    SUFFIX: str

    def dump(self, url: URL, file: Path) -> None: ...

    def verify(self, file: Path) -> str | None:
        """Return the revision of the schema in the file, or None if no migration was applied.

        Raise BackupError unless the file is a complete backup of this service.
        """

    def load(self, url: URL, file: Path) -> list[str]:
        """Restore the file, and return the errors of grants that could not be restored.

        If the restore fails, change nothing and raise BackupError. On PostgreSQL, replace only the service's own
        objects, as defined in postgresql.py.
        """


def write_backup(url: URL, target: Path, keep: int | None = None) -> Path:
    """Write a backup and return its path: `target`, or a new file in `target` if that is a folder.

    With `keep`, delete all but the newest `keep` backups in the folder.
    """
    kind = _backend(url)
    _refuse_database(url, target)
    file = target / f"{_prefix()}{datetime.now(UTC):%Y%m%dT%H%M%SZ}{kind.SUFFIX}" if target.is_dir() else target
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".partial", dir=file.parent)
    os.close(descriptor)
    partial = Path(name)
    try:
        kind.dump(url, partial)
        kind.verify(partial)
        sync_path(partial)
        partial.replace(file)
        sync_path(file.parent)
    finally:
        partial.unlink(missing_ok=True)
    if keep is not None and target.is_dir():
        _remove_old(target, kind.SUFFIX, keep)
    return file


def restore_backup(url: URL, file: Path) -> list[str]:
    """Restore a verified backup; return the errors of grants that could not be restored."""
    kind = _backend(url)
    _refuse_database(url, file)
    revision = kind.verify(file)
    if read_revisions().is_ahead(revision):
        raise BackupError(
            f"The schema in {file} has the revision {revision}, which this release of the service does not know:"
            " restore with a newer release."
        )
    return kind.load(url, file)


def _refuse_database(url: URL, file: Path) -> None:
    """Raise BackupError if the backup file is the SQLite database itself."""
    database = Path(url.database or "")
    if url.get_backend_name() == "sqlite" and file.exists() and database.exists() and file.samefile(database):
        raise BackupError(f"{file} is the database itself: name another file.")


def _backend(url: URL) -> BackupBackend:
    return cast(BackupBackend, import_module(f"app.core.db.backup.{url.get_backend_name()}"))


def _prefix() -> str:
    return f"{read_project().name}-"


def _remove_old(folder: Path, suffix: str, keep: int) -> None:
    # Sorting the names lists the oldest backup first, because each name contains the time.
    for file in sorted(folder.glob(f"{_prefix()}????????T??????Z{suffix}"))[:-keep]:
        file.unlink()
    for partial in folder.glob(f".{_prefix()}*.partial"):
        if partial.stat().st_mtime < time.time() - STALE_SECONDS:
            partial.unlink()
