"""Backups of the folder with the files of users, and restoring them."""

import asyncio
import os
import shutil
import time
from pathlib import Path
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from app.core.storage.folder import FolderStore
from app.core.storage.objects import object_path
from app.files.backup import restore_backup, write_backup
from tests.core.storage.test_storage import generate, list_files
from tests.support.databases import unreachable_url
from tests.test_cli import manage


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    return tmp_path / "backups"


def add_objects(folder: Path, *sizes: int) -> list[UUID]:
    keys = [uuid7() for _ in sizes]
    for key, size in zip(keys, sizes, strict=True):
        asyncio.run(FolderStore(folder).save(key, generate(size)))
    return keys


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in list_files(folder)}


def test_a_backup_holds_all_files(storage_folder: Path, backups: Path) -> None:
    add_objects(storage_folder, 0, 10, 100_000)

    backup = write_backup(storage_folder, backups)

    assert read_all(backup) == read_all(storage_folder)
    assert list(backups.iterdir()) == [backup]
    assert backup.stat().st_mode & 0o777 == 0o700


def test_backup_shares_unchanged_files_with_previous_backup(storage_folder: Path, backups: Path) -> None:
    (old,) = add_objects(storage_folder, 10)
    first = write_backup(storage_folder, backups)
    (new,) = add_objects(storage_folder, 20)

    second = write_backup(storage_folder, backups)

    assert (first / object_path(old)).samefile(second / object_path(old))
    assert not (second / object_path(old)).samefile(storage_folder / object_path(old))
    assert read_all(second) == read_all(storage_folder)
    assert not (first / object_path(new)).exists()


def test_file_damaged_in_previous_backup_is_copied_again(storage_folder: Path, backups: Path) -> None:
    (key,) = add_objects(storage_folder, 10)
    (write_backup(storage_folder, backups) / object_path(key)).write_bytes(b"cut")

    second = write_backup(storage_folder, backups)

    assert read_all(second) == read_all(storage_folder)


def test_backup_leaves_out_uploads_in_progress(storage_folder: Path, backups: Path) -> None:
    (key,) = add_objects(storage_folder, 10)
    (storage_folder / object_path(key)).with_suffix(".partial").touch()

    backup = write_backup(storage_folder, backups)

    assert list(read_all(backup)) == [object_path(key)]


def test_before_the_first_file_a_backup_is_empty(storage_folder: Path, backups: Path) -> None:
    assert read_all(write_backup(storage_folder, backups)) == {}


def test_folder_that_has_lost_all_files_is_not_backed_up(storage_folder: Path, backups: Path) -> None:
    add_objects(storage_folder, 2)
    backup = write_backup(storage_folder, backups)
    shutil.rmtree(storage_folder)

    with pytest.raises(FileNotFoundError, match="correct STORAGE_FOLDER, or mount the folder"):
        write_backup(storage_folder, backups, keep=1)

    assert len(read_all(backup)) == 1


def test_only_the_newest_backups_are_kept(storage_folder: Path, backups: Path) -> None:
    add_objects(storage_folder, 10)
    made = [write_backup(storage_folder, backups) for _ in range(3)]
    stale = backups / f".{made[0].name}.x.partial"
    (stale / "aa").mkdir(parents=True)
    os.utime(stale, (time.time() - 100_000,) * 2)
    (backups / "notes").mkdir()

    newest = write_backup(storage_folder, backups, keep=2)

    assert {*backups.iterdir()} == {made[2], newest, backups / "notes"}
    assert read_all(newest) == read_all(storage_folder)


def test_failed_backup_leaves_no_files_behind(storage_folder: Path, backups: Path) -> None:
    (key,) = add_objects(storage_folder, 10)
    # A folder in the place of a file, so that copying it fails.
    (storage_folder / object_path(uuid7())).mkdir(parents=True)

    failed = manage(unreachable_url(), "files", "backup", str(backups), STORAGE_FOLDER=str(storage_folder))

    assert failed.returncode == 1
    assert "Is a directory" in failed.stderr
    assert list(backups.iterdir()) == []
    assert list(read_all(storage_folder)) == [object_path(key)]


def test_restore_replaces_only_missing_and_damaged_files(storage_folder: Path, backups: Path) -> None:
    lost, damaged, kept = add_objects(storage_folder, 10, 20, 30)
    before = read_all(storage_folder)
    backup = write_backup(storage_folder, backups)
    (storage_folder / object_path(lost)).unlink()
    (storage_folder / object_path(damaged)).write_bytes(b"cut")
    there = (storage_folder / object_path(kept)).stat()
    (new,) = add_objects(storage_folder, 40)

    count = restore_backup(backup, storage_folder)

    assert count == 2
    assert (storage_folder / object_path(new)).stat().st_size == 40
    assert (storage_folder / object_path(kept)).stat().st_ino == there.st_ino
    assert {name: content for name, content in read_all(storage_folder).items() if name in before} == before


def test_restore_from_folder_without_backup_is_refused(storage_folder: Path, backups: Path) -> None:
    add_objects(storage_folder, 10)
    write_backup(storage_folder, backups)
    shutil.rmtree(storage_folder)

    # The argument is not a backup, but the folder that contains the backups.
    refused = manage(unreachable_url(), "files", "restore", str(backups), STORAGE_FOLDER=str(storage_folder))

    assert refused.returncode == 1
    assert "is not a backup of files: name a folder" in refused.stderr


def test_an_operator_backs_up_and_restores(storage_folder: Path, backups: Path, tmp_path: Path) -> None:
    add_objects(storage_folder, 10, 20)
    url, new = unreachable_url(), str(tmp_path / "new")

    backed_up = manage(url, "files", "backup", str(backups), "--keep", "1", STORAGE_FOLDER=str(storage_folder))
    (backup,) = backups.iterdir()
    restored = manage(url, "files", "restore", str(backup), STORAGE_FOLDER=new)

    assert (backed_up.returncode, restored.returncode) == (0, 0), backed_up.stderr + restored.stderr
    assert f"Done: {backup}" in backed_up.stdout
    assert "Done: 2 files" in restored.stdout
    assert read_all(Path(new)) == read_all(storage_folder)


def test_backup_and_restore_of_bucket_refer_to_versioning(backups: Path, tmp_path: Path) -> None:
    bucket = {"STORAGE_S3_BUCKET": "files"}

    backed_up = manage(unreachable_url(), "files", "backup", str(backups), **bucket)
    restored = manage(unreachable_url(), "files", "restore", str(tmp_path), **bucket)

    assert (backed_up.returncode, restored.returncode) == (0, 1)
    assert "versioning" in backed_up.stdout
    assert "versioning" in restored.stderr
    assert not backups.exists()


def test_backup_without_configured_storage_fails(backups: Path) -> None:
    production = {"ENVIRONMENT": "production", "ALLOWED_HOSTS": "example.com"}
    production["SECRET_KEY"] = "Zx81mQ0pLr7tVb3nHy6kWd9sJf2gCa5e"

    failed = manage(unreachable_url(), "files", "backup", str(backups), **production)

    assert failed.returncode == 1
    assert failed.stderr == "No storage for files is configured: set STORAGE_FOLDER.\n"
