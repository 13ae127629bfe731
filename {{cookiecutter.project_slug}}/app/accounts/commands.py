"""Command groups `users` and `sessions`."""

from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from app.accounts.passwords import service as passwords_service
from app.accounts.queries import get_user_by_email
from app.accounts.second_factor import service as second_factor
from app.accounts.sessions import service as sessions_service
from app.accounts.users import service as users_service
from app.accounts.users.schemas import UserAdminUpdate, UserCreate
from app.core.commands import fail_validation, load_settings, open_context, read_password, run
from app.core.config.settings import Settings
from app.core.http.schemas import normalize_email
from app.core.security.schemas import NewPassword

users = typer.Typer(name="users", help="Manage accounts.", no_args_is_help=True)
sessions = typer.Typer(name="sessions", help="Manage the sessions of accounts.", no_args_is_help=True)
# Without a name, so that the command line shows the groups `users` and `sessions` at its top level.
commands = typer.Typer()
commands.add_typer(users)
commands.add_typer(sessions)

EmailArgument = Annotated[str, typer.Argument(metavar="EMAIL", help="E-mail address of the account.")]
PasswordStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]


@users.command("create-admin")
def create_admin(context: typer.Context, email: EmailArgument, password_stdin: PasswordStdin = False) -> None:
    """Create the account of an administrator. Asks for a password, unless --password-stdin is given."""
    settings = load_settings(context)
    try:
        data = UserCreate.model_validate({"email": email, "password": read_password(password_stdin)})
    except ValidationError as error:
        fail_validation(error, "password")
    run(create_admin_user(settings, data))
    typer.echo(f"{data.email} is an administrator.")


async def create_admin_user(settings: Settings, data: UserCreate) -> None:
    async with open_context(settings) as ctx:
        await users_service.create_user(ctx, data, is_admin=True)


@users.command("set-password")
def set_password(context: typer.Context, email: EmailArgument, password_stdin: PasswordStdin = False) -> None:
    """Set a user's password and end the user's sessions. Asks for a password, unless --password-stdin is given."""
    settings = load_settings(context)
    try:
        password = TypeAdapter(NewPassword).validate_python(read_password(password_stdin))
    except ValidationError as error:
        fail_validation(error, "password")
    run(set_user_password(settings, email, password.get_secret_value()))
    typer.echo(f"The password of {email} is set, and all sessions of the account have ended.")


async def set_user_password(settings: Settings, email: str, password: str) -> None:
    async with open_context(settings) as ctx:
        user = await get_user_by_email(ctx.session, normalize_email(email))
        await passwords_service.set_password(ctx, user, password)


@users.command()
def deactivate(context: typer.Context, email: EmailArgument) -> None:
    """Deactivate an account and end its sessions."""
    run(deactivate_user(load_settings(context), email))
    typer.echo(f"The account {email} is deactivated, and its sessions have ended.")


async def deactivate_user(settings: Settings, email: str) -> None:
    async with open_context(settings) as ctx:
        user = await get_user_by_email(ctx.session, normalize_email(email))
        await users_service.update_user(ctx, user, UserAdminUpdate(is_active=False))


@users.command()
def reencrypt(context: typer.Context) -> None:
    """Re-encrypt all second-factor secrets with SECRET_KEY, so that SECRET_KEY_FALLBACKS can be removed."""
    count = run(reencrypt_secrets(load_settings(context)))
    typer.echo(f"Done: {count:,} secrets re-encrypted.")


async def reencrypt_secrets(settings: Settings) -> int:
    async with open_context(settings) as ctx:
        return await second_factor.reencrypt(ctx)


@users.command("disable-second-factor")
def disable_second_factor(context: typer.Context, email: EmailArgument) -> None:
    """Remove a user's authenticator app, passkeys and recovery codes, for a user who has lost them."""
    run(remove_second_factor(load_settings(context), email))
    typer.echo(f"{email} has no second factor any more.")


async def remove_second_factor(settings: Settings, email: str) -> None:
    async with open_context(settings) as ctx:
        user = await get_user_by_email(ctx.session, normalize_email(email))
        await second_factor.remove(ctx, user.id)


@sessions.command("end-all")
def end_all(
    context: typer.Context,
    email: Annotated[
        str | None, typer.Argument(metavar="EMAIL", help="E-mail address of the account. Default: all accounts.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """End all sessions of one account, or of all accounts if no address is given."""
    settings = load_settings(context)
    if not yes:
        typer.confirm(f"End the sessions of {email or 'all accounts'}?", abort=True)
    typer.echo(f"Sessions ended: {run(end_sessions(settings, email)):,}")


async def end_sessions(settings: Settings, email: str | None) -> int:
    async with open_context(settings) as ctx:
        user = None if email is None else await get_user_by_email(ctx.session, normalize_email(email))
        return await sessions_service.end_all(ctx.session, ctx.audit, user)
