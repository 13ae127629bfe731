import typer

from app.core.commands import load_settings, open_context, run
from app.core.config.settings import Settings
from app.outbox import service
from app.outbox.service import FailedEmailRecord

commands = typer.Typer(name="outbox", help="Manage e-mails that could not be sent.", no_args_is_help=True)


@commands.command("list")
def list_failed_emails(context: typer.Context) -> None:
    """List failed e-mails with their errors, without addresses."""
    for email in run(failed_emails(load_settings(context))):
        typer.echo(f"{email.id}  {email.created_at:%Y-%m-%d %H:%M:%S}  {email.kind}  {email.error}")


async def failed_emails(settings: Settings) -> list[FailedEmailRecord]:
    async with open_context(settings) as ctx:
        return await service.list_failed(ctx.session)


@commands.command("retry")
def retry_failed_emails(context: typer.Context) -> None:
    """Queue all failed e-mails again; the running service then sends them."""
    typer.echo(f"E-mails queued again: {run(retry_emails(load_settings(context)))}")


async def retry_emails(settings: Settings) -> int:
    async with open_context(settings) as ctx:
        return await service.retry_failed(ctx.session)
