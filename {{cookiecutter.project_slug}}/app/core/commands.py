"""Helpers for the commands that features add to `python -m app`.

The server must not import this module, which imports Typer and Alembic.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from pkgutil import resolve_name
from typing import Any, NoReturn, TypeVar

import typer
from alembic.util import CommandError
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from typer.main import get_command_name, solve_typer_info_defaults

from app.core.config.load import load_settings_or_exit
from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.session import open_database
from app.core.errors import AppError, first_line
from app.core.feature import Feature
from app.core.upstream.http_client import open_http_client

EXIT_FAILED = 1
DRIVER_GRACE_SECONDS = 0.1
# psycopg does not support the default event loop of Windows.
LOOP_FACTORY = asyncio.SelectorEventLoop if sys.platform == "win32" else None

T = TypeVar("T")


def add_commands(cli: typer.Typer, features: Iterable[Feature]) -> None:
    """Add the commands of all features; exit with a message if two have the same name."""
    # Add each Typer app once: features that share a command group refer to the same app.
    for commands in dict.fromkeys(resolve_name(feature.commands) for feature in features if feature.commands):
        cli.add_typer(commands)
    repeated = [command for command, count in Counter(_list_commands(cli)).items() if count > 1]
    if repeated:
        sys.exit(
            f"Several commands or groups have the same name: {', '.join(repeated)}."
            " Rename one of them, or let the features share one group of commands."
        )


def _list_commands(cli: typer.Typer, group: str = "") -> Iterator[str]:
    for command in cli.registered_commands:
        assert command.callback is not None  # noqa: S101  # for the type checker: a registered command has a callback
        yield group + (command.name or get_command_name(command.callback.__name__))
    for info in map(solve_typer_info_defaults, cli.registered_groups):
        assert info.typer_instance is not None  # noqa: S101  # for the type checker: `add_typer` always gets an app
        # Typer adds the commands of an unnamed group to its parent.
        if info.name:
            yield group + info.name
        yield from _list_commands(info.typer_instance, f"{group}{info.name} " if info.name else group)


def load_settings(context: typer.Context) -> Settings:
    """Load the settings, including those of features; explain every problem and exit if there are any."""
    return load_settings_or_exit(context.obj)


def run(work: Coroutine[Any, Any, T]) -> T:
    try:
        with asyncio.Runner(loop_factory=LOOP_FACTORY) as runner:
            return runner.run(_run_and_let_driver_finish(work))
    except AppError as error:
        fail(error.detail)
    except (CommandError, SQLAlchemyError, OSError, TimeoutError) as error:
        fail(first_line(error))


async def _run_and_let_driver_finish(work: Coroutine[Any, Any, T]) -> T:
    try:
        return await work
    except BaseException:
        # Wait for the driver's threads: a thread that reports to a closed event loop would print a traceback.
        await asyncio.sleep(DRIVER_GRACE_SECONDS)
        raise


def fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(EXIT_FAILED)


def fail_validation(error: ValidationError, field: str) -> NoReturn:
    """Print each problem after the name of its field: `field`, unless the error is that of a model with fields."""
    problems = error.errors(include_input=False)
    fail("\n".join(f"{problem['loc'][0] if problem['loc'] else field}: {_reason(problem)}" for problem in problems))


def _reason(problem: Mapping[str, object]) -> str:
    return str(problem["msg"]).removeprefix("Value error, ")


def read_password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    password: str = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    return password


@asynccontextmanager
async def open_context(settings: Settings) -> AsyncIterator[Context]:
    async with open_http_client(1) as http, open_database(settings) as database, database.write() as session:
        yield Context.for_operator(session, database, settings, http)
