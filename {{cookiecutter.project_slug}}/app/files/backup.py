"""Atomic backups of stored files: each backup is a folder that gets its final name when it is complete."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from app.core.db.backup import STALE_SECONDS
from app.core.filesystem import sync_path
from app.core.project import read_project
from app.core.storage.folder import PARTIAL_SUFFIX


def write_backup(source: Path, target: Path, keep: int | None = None) -> Path:
    """Copy all files to a new folder in `target`, and delete all but the newest `keep` backups there.

    Files never change, so a file that is also in the previous backup is a hard link to it and takes no space. Raises
    OSError if `source` is empty and the previous backup is not: then `source` is probably the wrong folder.
    """
    target.mkdir(exist_ok=True)
    previous = max(_list_backups(target), default=None)
    if previous is not None and not any(_list_objects(source)) and any(_list_objects(previous)):
        raise FileNotFoundError(
            f"{source} has no files, but the last backup {previous} has some: correct STORAGE_FOLDER, or mount the"
            " folder."
        )
    backup = target / f"{_prefix()}{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    partial = Path(tempfile.mkdtemp(prefix=f".{backup.name}.", suffix=PARTIAL_SUFFIX, dir=target))
    try:
        for path in _list_objects(source):
            # The purge may delete the file during the backup.
            with suppress(FileNotFoundError):
                _link_or_copy(source / path, partial / path, previous and previous / path)
        for folder in (*partial.iterdir(), partial):
            sync_path(folder)
        partial.replace(backup)
        sync_path(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if keep is not None:
        _remove_old(target, keep)
    return backup


def restore_backup(backup: Path, folder: Path) -> int:
    """Copy files that are missing in `folder` or have another size there; return how many were copied.

    Raises OSError if `backup` is no backup of files.
    """
    if any(backup.iterdir()) and not any(_list_objects(backup)):
        raise FileNotFoundError(f"{backup} is not a backup of files: name a folder that `files backup` has written.")
    count = 0
    for path in _list_objects(backup):
        if not _has_size_of(folder / path, backup / path):
            _copy(backup / path, folder / path)
            count += 1
    return count


def _list_objects(folder: Path) -> Iterator[Path]:
    """Return the relative paths of all complete files."""
    for path in folder.glob("??/*"):
        if path.suffix != PARTIAL_SUFFIX:
            yield path.relative_to(folder)


def _link_or_copy(source: Path, target: Path, previous: Path | None) -> None:
    if previous is not None and _has_size_of(previous, source):
        target.parent.mkdir(exist_ok=True)
        os.link(previous, target)
    else:
        _copy(source, target)


def _has_size_of(path: Path, other: Path) -> bool:
    try:
        return path.stat().st_size == other.stat().st_size
    except FileNotFoundError:
        return False


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(PARTIAL_SUFFIX)
    try:
        shutil.copyfile(source, partial)
        sync_path(partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _prefix() -> str:
    return f"{read_project().name}-files-"


def _list_backups(target: Path) -> list[Path]:
    """Return the backups, oldest first."""
    return sorted(target.glob(f"{_prefix()}????????T????????????Z"))


def _remove_old(target: Path, keep: int) -> None:
    for backup in _list_backups(target)[:-keep]:
        # Rename the backup first, so that an interrupted deletion leaves no incomplete backup under its name.
        shutil.rmtree(backup.rename(target / f".{backup.name}{PARTIAL_SUFFIX}"))
    for partial in target.glob(f".{_prefix()}*{PARTIAL_SUFFIX}"):
        if partial.stat().st_mtime < time.time() - STALE_SECONDS:
            shutil.rmtree(partial)
