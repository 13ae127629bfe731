"""Commands about sign-ins, in the group of accounts."""

import typer

from app.auth import second_factor
from app.core.commands import load_settings, open_toolbox, run
from app.core.config import Settings
from app.core.schemas import as_stored
from app.users import service as users_service
from app.users.commands import EmailArgument, commands


@commands.command()
def reencrypt(context: typer.Context) -> None:
    """Encrypt all secrets of second factors with SECRET_KEY, so that its predecessors can go."""
    count = run(reencrypt_secrets(load_settings(context)))
    typer.echo(f"Done: {count:,} secrets.")


async def reencrypt_secrets(settings: Settings) -> int:
    async with open_toolbox(settings) as tools:
        return await second_factor.reencrypt(tools)


@commands.command("disable-second-factor")
def disable_second_factor(context: typer.Context, email: EmailArgument) -> None:
    """Remove the second factor of a user who has lost the authenticator and the recovery codes."""
    run(remove_second_factor(load_settings(context), email))
    typer.echo(f"{email} signs in without a second factor.")


async def remove_second_factor(settings: Settings, email: str) -> None:
    async with open_toolbox(settings) as tools:
        user = await users_service.get_user_by_email(tools.session, as_stored(email))
        await second_factor.remove(tools, user.id)
