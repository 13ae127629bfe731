from pathlib import Path
from typing import Annotated, NoReturn

import typer

from app.core.config import Settings, load_settings_or_exit
from app.files.backup import restore_backup, write_backup

EXIT_FAILED = 1
IN_BUCKET = "STORAGE_S3_BUCKET is set: the bucket's own versioning or replication keeps its objects."

files = typer.Typer(help="Manage stored files.", no_args_is_help=True)


@files.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="The folder that gets a new one with all files.")],
    keep: Annotated[int | None, typer.Option(min=1, help="Remove all but the newest N backups.", metavar="N")] = None,
) -> None:
    """Back up the files, right after the database; only what is new since the last backup takes space."""
    settings = load_settings_or_exit()
    if settings.storage_s3_bucket is not None:
        typer.echo(f"Nothing to do. {IN_BUCKET}")
        return
    source = require_folder(settings)
    typer.echo(f"Backing up {source} ...")
    try:
        written = write_backup(source, folder, keep)
    except OSError as error:
        fail(str(error))
    typer.echo(f"Done: {written}")


@files.command()
def restore(
    snapshot: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What `files backup` has written.")],
) -> None:
    """Bring back the files that are missing; those that are there stay."""
    settings = load_settings_or_exit()
    if settings.storage_s3_bucket is not None:
        fail(f"Nothing was restored. {IN_BUCKET}")
    target = require_folder(settings)
    typer.echo(f"Restoring {snapshot} ...")
    try:
        count = restore_backup(snapshot, target)
    except OSError as error:
        fail(str(error))
    typer.echo(f"Done: {count:,} files were missing and are back.")


def require_folder(settings: Settings) -> Path:
    return settings.files_folder or fail("No storage for files is configured: set STORAGE_FOLDER.")


def fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(EXIT_FAILED)
