import asyncio
import json
import signal
import sys
import time
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn
from sqlalchemy import URL, select
from sqlalchemy.exc import SQLAlchemyError

from app.application import create_app
from app.core.commands import LOOP_FACTORY, add_commands, fail, run
from app.core.config.database_url import parse_url
from app.core.config.load import EXIT_CANNOT_START, load_settings_or_exit
from app.core.config.settings import Settings
from app.core.db import migrations
from app.core.db import purge as purging
from app.core.db.backup import BackupError, restore_backup, write_backup
from app.core.db.branches import reparent
from app.core.db.copy import Options, copy_database
from app.core.db.session import open_database
from app.core.errors import AppError, first_line
from app.core.observability.logging import logging_config
from app.core.process.lifecycle import exit_with_parent, record_start_time
from app.core.process.sockets import trusted_proxies
from app.core.process.workers import metrics_directory
from app.core.project import ROOT
from app.features import FEATURES, SETTINGS
from app.startup import LAST_RESET, reset

cli = typer.Typer(
    help="Manage the service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # `load_settings` in app/core/commands.py reads this object.
    context_settings={"obj": SETTINGS},
)
db = typer.Typer(help="Manage the database.", no_args_is_help=True)
cli.add_typer(db, name="db")


@cli.command()
def serve(
    reload: Annotated[bool, typer.Option("--reload", help="Restart when the code changes (development).")] = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Number of worker processes.")] = 1,
) -> None:
    """Run the service, in one process unless --workers is given; start.sh runs one worker per core."""
    settings = load_settings_or_exit(SETTINGS)
    record_start_time()
    if reload:
        exit_with_parent()
    # Exit with 0 after SIGTERM: uvicorn raises the signal again after its shutdown.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit())
    with metrics_directory() if workers > 1 else nullcontext():
        start = uvicorn.run if reload or workers > 1 or settings.unix_socket else _serve_alone
        start(
            "app.main:app",
            loop="asyncio:SelectorEventLoop" if LOOP_FACTORY else "auto",
            host=settings.host,
            port=settings.port,
            uds=str(settings.unix_socket) if settings.unix_socket else None,
            reload=reload,
            reload_dirs=[str(ROOT / "app")] if reload else None,
            # Set explicitly, because uvicorn would otherwise read WEB_CONCURRENCY.
            workers=workers,
            timeout_worker_healthcheck=settings.worker_timeout_seconds,
            log_config=logging_config(settings),
            access_log=False,
            forwarded_allow_ips=trusted_proxies(settings),
            timeout_keep_alive=settings.keepalive_seconds,
            timeout_graceful_shutdown=settings.graceful_timeout_seconds,
        )


def _serve_alone(app: str, **options: Any) -> None:  # noqa: ANN401  # passed on to uvicorn.Config, which declares them
    """Do the same as `uvicorn.run`, but bind the socket as uvicorn does for workers: an IPv6 socket is dual-stack."""
    config = uvicorn.Config(app, **options)
    server = uvicorn.Server(config)
    with suppress(KeyboardInterrupt):
        server.run([config.bind_socket()])
    if not server.started:
        sys.exit(EXIT_CANNOT_START)


@cli.command()
def check() -> None:
    """Check the configuration and explain every problem."""
    settings = load_settings_or_exit(SETTINGS)
    for note in settings.notes:
        typer.echo(f"Note: {note}.")
    typer.echo(
        f"The configuration is valid. ENVIRONMENT: {settings.environment}."
        f" Database: {settings.url.render_as_string(hide_password=True)}"
    )


@cli.command()
def purge() -> None:
    """Delete expired data, which the running service also deletes periodically."""
    deleted = run(purge_database(load_settings_or_exit(SETTINGS)))
    typer.echo(f"Done: {deleted:,} rows deleted.")


async def purge_database(settings: Settings) -> int:
    async with open_database(settings) as database:
        return await purging.purge(database, settings, [feature.purge for feature in FEATURES if feature.purge])


@cli.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    typer.echo(json.dumps(create_app(load_settings_or_exit(SETTINGS)).openapi(), indent=2))


@db.command()
def upgrade(revision: Annotated[str, typer.Argument(metavar="REVISION", help="An Alembic revision.")] = "head") -> None:
    """Upgrade the schema to REVISION."""
    settings = load_settings_or_exit(SETTINGS)
    typer.echo(f"Upgrading to {revision} ...")
    if run(migrations.upgrade(settings, revision)):
        typer.echo("Done.")
    else:
        typer.echo("A newer release of the service has migrated this database: the schema is unchanged.")


# Without this setting, the command line would read the revision -1 as an option.
@db.command(context_settings={"ignore_unknown_options": True})
def downgrade(
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="An Alembic revision, such as -1 (one back) or base (no tables).")
    ],
) -> None:
    """Downgrade the schema to REVISION."""
    settings = load_settings_or_exit(SETTINGS)
    typer.echo(f"Downgrading to {revision} ...")
    run(migrations.downgrade(settings, revision))
    typer.echo("Done.")


@db.command()
def revision(
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="Summary of the change, such as: add notes.")],
) -> None:
    """Upgrade the database, then generate a migration from the changes of the models (development)."""
    if not message.strip():
        raise typer.BadParameter("MESSAGE is empty: summarize the change.")
    settings = load_settings_or_exit(SETTINGS)
    if settings.environment.is_deployed:
        fail(f"ENVIRONMENT is {settings.environment}: it must be local or test to generate migrations.")
    if find_spec("ruff") is None:
        fail("ruff, which formats new migrations, is not installed: run `make install` or `uv sync`.")
    run(migrations.write_migration(settings, message))


@db.command("reparent")
def reparent_migration(
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="A migration of the branch that comes last from now on.")
    ],
    onto: Annotated[
        str | None,
        typer.Option(metavar="REVISION", help="The last migration of the other branch, if there are several."),
    ] = None,
) -> None:
    """Join two branches of migrations, which no database has run together yet, into one chain (development)."""
    try:
        first, predecessor = reparent(revision, onto)
    except AppError as error:
        fail(str(error))
    typer.echo(f"{first} follows {predecessor} now. Check the migrations with `db upgrade` and `db check`.")


@db.command("check")
def check_db() -> None:
    """Check that the latest migration (head) has been applied, and that the models match the schema."""
    run(migrations.check(load_settings_or_exit(SETTINGS)))


@db.command("reset")
def reset_db(yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False) -> None:
    """Delete all tables, create them again, and load the sample data. Works only if ENVIRONMENT is local or test."""
    settings = load_settings_or_exit(SETTINGS)
    if settings.environment.is_deployed:
        fail(f"ENVIRONMENT is {settings.environment}: it must be local or test to reset the database.")
    if not yes:
        typer.confirm(f"Delete everything in {settings.owner_url.render_as_string(hide_password=True)}?", abort=True)
    run(reset(settings, FEATURES))
    typer.echo("Done: the schema is at head, and the sample data is loaded.")


@db.command()
def wait(timeout: Annotated[float, typer.Option(min=0, help="Seconds after which the command fails.")] = 60) -> None:
    """Wait until the database answers."""
    run(wait_for_database(load_settings_or_exit(SETTINGS), timeout))
    typer.echo("The database answers.")


async def wait_for_database(settings: Settings, timeout_seconds: float) -> None:
    """Connect repeatedly; raises the last error after the timeout."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            async with open_database(settings) as database, database.read() as session:
                await session.execute(select(1))
                return
        except (SQLAlchemyError, OSError) as error:
            if time.monotonic() >= deadline:
                raise
            typer.echo(f"Waiting: {first_line(error)}", err=True)
            await asyncio.sleep(1)


@db.command()
def backup(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A file, or a folder for a new file.")],
    keep: Annotated[
        int | None, typer.Option(min=1, help="If TARGET is a folder, remove all but its newest N backups.", metavar="N")
    ] = None,
) -> None:
    """Back up the service's database to a file, which appears only when it is complete."""
    settings = load_settings_or_exit(SETTINGS)
    typer.echo(f"Backing up {settings.owner_url.render_as_string(hide_password=True)} ...")
    try:
        file = write_backup(settings.owner_url, target, keep)
    except (BackupError, OSError) as error:
        fail(str(error))
    typer.echo(f"Done: {file}, {file.stat().st_size:,} bytes.")


@db.command()
def restore(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A file written by `db backup`.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Restore the service's database from a backup.

    Stop the service first: everything it writes during the restore is lost.
    """
    settings = load_settings_or_exit(SETTINGS)
    if not yes:
        typer.confirm(
            f"Replace the service's data in {settings.owner_url.render_as_string(hide_password=True)}?", abort=True
        )
    typer.echo(f"Restoring {file} ...")
    try:
        lost = restore_backup(settings.owner_url, file)
    except (AppError, BackupError, OSError) as error:
        fail(str(error))
    for note in lost:
        typer.echo(f"A grant of database rights was not restored: {note}.", err=True)
    typer.echo("Done. If an older release of the service wrote the backup, run `db upgrade` now.")


@db.command("copy")
def copy_db(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            envvar="SOURCE_DATABASE_URL",
            help="URL of the database to read, in the forms of DATABASE_URL, but without a password.",
        ),
    ],
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--source-password-file",
            exists=True,
            dir_okay=False,
            help="File with the password of SOURCE. SOURCE_DATABASE_URL may contain a password.",
        ),
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="TABLE", help="Leave out this table, which the service does not know.")
    ] = None,
    replace: Annotated[
        list[str] | None,
        typer.Option(metavar="TABLE", help="Delete the rows of this table, which a migration inserted."),
    ] = None,
) -> None:
    """Copy all rows of another database, of the same or another kind, to the service's database, and verify them.

    Run `db upgrade` first, and stop the service until the copy is done. Nothing is copied unless the service's tables
    are empty. The other database is only read.
    """
    settings = load_settings_or_exit(SETTINGS)
    origin = context.get_parameter_source("source")
    url = read_source(source, password_file, is_visible=origin is not None and origin.name == "COMMANDLINE")
    typer.echo(f"Copying {url.render_as_string()} to {settings.owner_url.render_as_string()} ...")
    options = Options(ignored=[LAST_RESET.name], skipped=skip or [], replaced=replace or [])
    copied = run(copy_database(settings, url, options, typer.echo))
    for table in copied:
        typer.echo(f"{table.name}: {table.rows:,} rows, checksum {table.checksum[:16]}")
    typer.echo(
        f"Done: {sum(table.rows for table in copied):,} rows in {len(copied)} tables, the same in both databases."
    )


def read_source(text: str, password_file: Path | None, *, is_visible: bool) -> URL:
    """Return the URL of the source; refuse a password that other users of the machine can read."""
    try:
        url = parse_url(text)
    except ValueError as error:
        raise typer.BadParameter(f"SOURCE {error}.") from None
    if url.password is not None and is_visible:
        raise typer.BadParameter(
            "SOURCE contains a password, which every user of this machine can read in the list of processes. Set the"
            " URL in SOURCE_DATABASE_URL instead, or name a file with the password: --source-password-file."
        )
    if password_file is None:
        return url
    return url.set(password=password_file.read_text(encoding="utf-8").rstrip("\r\n"))


add_commands(cli, FEATURES)
