import sys

from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import first_line


class StartupErrorMiddleware:
    """Explains in one sentence why the database prevents the start; Starlette would log a traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def explain(message: Message) -> None:
            error = sys.exception()
            if error is not None and _is_of_the_database(error):
                message = {**message, "message": f"The database cannot be prepared: {first_line(error)}"}
            await send(message)

        await self.app(scope, receive, explain if scope["type"] == "lifespan" else send)


def _is_of_the_database(error: BaseException) -> bool:
    # Imported lazily: only UPDATE_DB and RESET_DB need Alembic.
    from alembic.util import CommandError

    from app.core.db.revisions import MigrationsError

    return isinstance(error, MigrationsError | SQLAlchemyError | CommandError | OSError)
