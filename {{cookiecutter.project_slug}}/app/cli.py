import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
import uvicorn
from alembic.util import CommandError
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.api import FEATURES, SETTINGS
from app.application import create_app
from app.auth import second_factor
from app.core import housekeeping, migrations
from app.core.backup import BackupError, restore_backup, write_backup
from app.core.config import Settings, load_settings_or_exit
from app.core.database import open_database
from app.core.exceptions import AppError, first_line
from app.core.lifecycle import mark_start, stop_with_parent
from app.core.logging import logging_config
from app.core.project import ROOT, read_project
from app.core.schemas import NewPassword, as_stored
from app.core.security import Security
from app.core.server import share_metrics, trusted_proxies
from app.core.toolbox import Toolbox, make_toolbox
from app.outbox import service as outbox_service
from app.outbox.service import EmailRow
from app.startup import reset
from app.users import service as users_service
from app.users.schemas import UserAdminUpdate, UserCreate

EXIT_FAILED = 1
DRIVER_GRACE_SECONDS = 0.1
# PostgreSQL's driver does not work on the loop that Windows has by default.
LOOP_FACTORY = asyncio.SelectorEventLoop if sys.platform == "win32" else None

T = TypeVar("T")

cli = typer.Typer(
    help="Manage the service.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
db = typer.Typer(help="Manage the database.", no_args_is_help=True)
users = typer.Typer(help="Manage accounts.", no_args_is_help=True)
outbox = typer.Typer(help="Manage the messages that could not be sent.", no_args_is_help=True)
cli.add_typer(db, name="db")
cli.add_typer(users, name="users")
cli.add_typer(outbox, name="outbox")

EmailArgument = Annotated[str, typer.Argument(metavar="EMAIL", help="The account's address.")]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]


@cli.command()
def serve(
    reload: Annotated[bool, typer.Option("--reload", help="Restart when the code changes, for development.")] = False,
    workers: Annotated[int, typer.Option("--workers", min=1, help="So many processes, kept alive by uvicorn.")] = 1,
) -> None:
    """Serve from one process; start.sh serves with several, for all of the machine's cores."""
    settings = load_settings_or_exit(SETTINGS)
    mark_start()
    if reload:
        stop_with_parent()
    # uvicorn raises it again once it has stopped; to stop when told to is a success.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit())
    with share_metrics() if workers > 1 else nullcontext():
        uvicorn.run(
            "app.main:app",
            loop="asyncio:SelectorEventLoop" if LOOP_FACTORY else "auto",
            host=settings.host,
            port=settings.port,
            uds=str(settings.unix_socket) if settings.unix_socket else None,
            reload=reload,
            reload_dirs=[str(ROOT / "app")] if reload else None,
            # Not WEB_CONCURRENCY, which uvicorn reads too.
            workers=workers,
            timeout_worker_healthcheck=settings.worker_timeout_seconds,
            log_config=logging_config(settings),
            access_log=False,
            forwarded_allow_ips=trusted_proxies(settings),
            timeout_keep_alive=settings.keepalive_seconds,
            timeout_graceful_shutdown=settings.graceful_timeout_seconds,
        )


@cli.command()
def check() -> None:
    """Explain every problem of the configuration."""
    settings = load_settings_or_exit(SETTINGS)
    for note in settings.notes:
        typer.echo(f"Note: {note}.")
    typer.echo(f"The configuration works: {settings.environment}, {settings.url.render_as_string(hide_password=True)}")


@cli.command()
def purge() -> None:
    """Delete what nobody needs any more: expired sessions, old audit events and the like; the service also does."""
    deleted = run(purge_database(load_settings_or_exit(SETTINGS)))
    typer.echo(f"Done: {deleted:,} rows are gone.")


async def purge_database(settings: Settings) -> int:
    async with open_database(settings) as database:
        return await housekeeping.purge(database, settings, [feature.purge for feature in FEATURES if feature.purge])


@cli.command()
def openapi() -> None:
    """Print the OpenAPI document."""
    typer.echo(json.dumps(create_app(load_settings_or_exit(SETTINGS)).openapi(), indent=2))


@db.command()
def upgrade(revision: Annotated[str, typer.Argument(help="Alembic's notation.")] = "head") -> None:
    """Bring the schema to head, or to REVISION."""
    settings = load_settings_or_exit(SETTINGS)
    typer.echo(f"Upgrading to {revision} ...")
    run(migrations.upgrade(settings, revision))
    typer.echo("Done.")


@db.command()
def downgrade(revision: Annotated[str, typer.Argument(help="Alembic's notation, such as -1 or base.")]) -> None:
    """Take the schema back to REVISION."""
    settings = load_settings_or_exit(SETTINGS)
    typer.echo(f"Downgrading to {revision} ...")
    run(migrations.downgrade(settings, revision))
    typer.echo("Done.")


@db.command("check")
def check_db() -> None:
    """Tell whether the schema is at head, and the models and the migrations agree."""
    run(migrations.check(load_settings_or_exit(SETTINGS)))


@db.command("reset")
def reset_db(yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Delete everything, and load the sample data. Only where ENVIRONMENT is local or test."""
    settings = load_settings_or_exit(SETTINGS)
    if settings.environment.is_deployed:
        fail(f"ENVIRONMENT is {settings.environment}: nothing is deleted there.")
    if not yes:
        typer.confirm(f"Delete everything in {settings.url.render_as_string(hide_password=True)}?", abort=True)
    run(reset(settings, make_security(settings), FEATURES))
    typer.echo("Done: the schema is at head and has the sample data.")


@db.command()
def wait(timeout: Annotated[float, typer.Option(min=0, help="Seconds.")] = 60) -> None:
    """Wait until the database answers."""
    run(wait_for_database(load_settings_or_exit(SETTINGS), timeout))
    typer.echo("The database answers.")


async def wait_for_database(settings: Settings, timeout_seconds: float) -> None:
    """Raises the database's last error when it does not answer in time."""
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
    target: Annotated[Path, typer.Argument(help="A file, or a folder that gets a new one.")],
    keep: Annotated[int | None, typer.Option(min=1, help="In a folder: remove all but the newest so many.")] = None,
) -> None:
    """Write everything to a file, which is there when it is complete."""
    settings = load_settings_or_exit(SETTINGS)
    typer.echo(f"Backing up {settings.url.render_as_string(hide_password=True)} ...")
    try:
        file = write_backup(settings.url, target, keep)
    except (BackupError, OSError) as error:
        fail(str(error))
    typer.echo(f"Done: {file}, {file.stat().st_size:,} bytes.")


@db.command()
def restore(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What `db backup` has written.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Replace everything by what a backup holds. Stop the service first: what it writes meanwhile is lost."""
    settings = load_settings_or_exit(SETTINGS)
    if not yes:
        typer.confirm(f"Replace everything in {settings.url.render_as_string(hide_password=True)}?", abort=True)
    typer.echo(f"Restoring {file} ...")
    try:
        restore_backup(settings.url, file)
    except (BackupError, OSError) as error:
        fail(str(error))
    typer.echo("Done. A backup of an older version needs `db upgrade` now.")


@users.command("create-admin")
def create_admin(email: EmailArgument, password_stdin: PasswordStdin = False) -> None:
    """Create an administrator; asks for the password."""
    settings = load_settings_or_exit(SETTINGS)
    try:
        data = UserCreate.model_validate({"email": email, "password": read_password(password_stdin)})
    except ValidationError as error:
        fail_validation(error)
    run(create_admin_user(settings, data))
    typer.echo(f"{data.email} is an administrator.")


async def create_admin_user(settings: Settings, data: UserCreate) -> None:
    async with open_toolbox(settings) as tools:
        await users_service.create_user(tools, data, is_admin=True)


@users.command("set-password")
def set_password(email: EmailArgument, password_stdin: PasswordStdin = False) -> None:
    """Set a password, and end the account's sessions; asks for the password."""
    settings = load_settings_or_exit(SETTINGS)
    try:
        password = TypeAdapter(NewPassword).validate_python(read_password(password_stdin))
    except ValidationError as error:
        fail_validation(error)
    run(set_user_password(settings, email, password.get_secret_value()))
    typer.echo(f"The password of {email} is set, and its sessions have ended.")


async def set_user_password(settings: Settings, email: str, password: str) -> None:
    async with open_toolbox(settings) as tools:
        user = await users_service.get_user_by_email(tools.session, as_stored(email))
        await users_service.set_password(tools, user, password)


@users.command()
def deactivate(email: EmailArgument) -> None:
    """Lock an account, and end its sessions."""
    run(deactivate_user(load_settings_or_exit(SETTINGS), email))
    typer.echo(f"{email} is deactivated, and its sessions have ended.")


async def deactivate_user(settings: Settings, email: str) -> None:
    async with open_toolbox(settings) as tools:
        user = await users_service.get_user_by_email(tools.session, as_stored(email))
        await users_service.update_user(tools, user, UserAdminUpdate(is_active=False))


@users.command()
def reencrypt() -> None:
    """Encrypt all secrets of second factors with SECRET_KEY, so that its predecessors can go."""
    count = run(reencrypt_secrets(load_settings_or_exit(SETTINGS)))
    typer.echo(f"Done: {count:,} secrets.")


async def reencrypt_secrets(settings: Settings) -> int:
    async with open_toolbox(settings) as tools:
        return await second_factor.reencrypt(tools)


@users.command("disable-second-factor")
def disable_second_factor(email: EmailArgument) -> None:
    """For who has lost the authenticator and the recovery codes."""
    run(remove_second_factor(load_settings_or_exit(SETTINGS), email))
    typer.echo(f"{email} signs in without a second factor.")


async def remove_second_factor(settings: Settings, email: str) -> None:
    async with open_toolbox(settings) as tools:
        user = await users_service.get_user_by_email(tools.session, as_stored(email))
        await second_factor.remove(tools, user.id)


@outbox.command("list")
def list_failed_emails() -> None:
    """List the messages that were given up, and why; their addresses stay in the database."""
    for email in run(failed_emails(load_settings_or_exit(SETTINGS))):
        typer.echo(f"{email.id}  {email.created_at:%Y-%m-%d %H:%M:%S}  {email.kind}  {email.error}")


async def failed_emails(settings: Settings) -> list[EmailRow]:
    async with open_toolbox(settings) as tools:
        return await outbox_service.list_failed(tools.session)


@outbox.command("retry")
def retry_failed_emails() -> None:
    """Have the service try again to send the messages that were given up."""
    typer.echo(f"Messages that will be tried again: {run(retry_emails(load_settings_or_exit(SETTINGS)))}")


async def retry_emails(settings: Settings) -> int:
    async with open_toolbox(settings) as tools:
        return await outbox_service.retry_failed(tools.session)


def run(work: Coroutine[Any, Any, T]) -> T:
    try:
        with asyncio.Runner(loop_factory=LOOP_FACTORY) as runner:
            return runner.run(_settle(work))
    except AppError as error:
        fail(error.detail)
    except (CommandError, SQLAlchemyError, OSError, TimeoutError) as error:
        fail(first_line(error))


async def _settle(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except BaseException:
        # A driver's thread that reports to a loop which is gone would print a traceback.
        await asyncio.sleep(DRIVER_GRACE_SECONDS)
        raise


def fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(EXIT_FAILED)


def fail_validation(error: ValidationError) -> NoReturn:
    fail("\n".join(str(problem["msg"]).removeprefix("Value error, ") for problem in error.errors(include_input=False)))


def read_password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    password: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return password


def make_security(settings: Settings) -> Security:
    return Security(settings, issuer=read_project().name)


@asynccontextmanager
async def open_toolbox(settings: Settings) -> AsyncIterator[Toolbox]:
    async with open_database(settings) as database, database.write() as session:
        yield make_toolbox(session, database, settings, make_security(settings))
