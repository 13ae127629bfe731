from pathlib import Path
from typing import Annotated

import typer

from app.core.commands import fail, load_settings
from app.core.config.settings import Settings
from app.files.backup import restore_backup, write_backup

IN_BUCKET = "STORAGE_S3_BUCKET is set: protect the files with the versioning or replication of the bucket."

commands = typer.Typer(name="files", help="Manage stored files.", no_args_is_help=True)


@commands.command()
def backup(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder of the backups; each backup is a new folder in it.")],
    keep: Annotated[int | None, typer.Option(min=1, help="Remove all but the newest N backups.", metavar="N")] = None,
) -> None:
    """Back up the stored files. Run `db backup` first. Files that the previous backup contains take no extra space."""
    settings = load_settings(context)
    if settings.storage_s3_bucket is not None:
        typer.echo(f"Nothing was backed up. {IN_BUCKET}")
        return
    source = require_folder(settings)
    typer.echo(f"Backing up {source} ...")
    try:
        written = write_backup(source, folder, keep)
    except OSError as error:
        fail(str(error))
    typer.echo(f"Done: {written}")


@commands.command()
def restore(
    context: typer.Context,
    snapshot: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A folder written by `files backup`.")],
) -> None:
    """Restore the stored files that are missing, or whose size differs from the backup."""
    settings = load_settings(context)
    if settings.storage_s3_bucket is not None:
        fail(f"Nothing was restored. {IN_BUCKET}")
    target = require_folder(settings)
    typer.echo(f"Restoring {snapshot} ...")
    try:
        count = restore_backup(snapshot, target)
    except OSError as error:
        fail(str(error))
    typer.echo(f"Done: {count:,} files were restored.")


def require_folder(settings: Settings) -> Path:
    return settings.files_folder or fail("No storage for files is configured: set STORAGE_FOLDER.")
