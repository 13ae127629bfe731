"""Sessions in streamed responses and background tasks release their connections to a real pool."""

import asyncio
import io
import re
from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx2
import pytest
from fastapi import BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import select, text

from app.accounts.models import User
from app.core.db.query import Query, columns
from app.core.dependencies import DatabaseDep, SessionDep
from tests.support.accounts import create_account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings

ME = "/api/v1/users/me"
POOL_SIZE = 2
# More requests than the pool has connections.
REQUESTS = 3 * POOL_SIZE


class UserEmail(NamedTuple):
    email: str


EMAILS = Query(select(*columns(UserEmail, User)), UserEmail)


def add_routes(app: FastAPI) -> list[str]:
    """Add routes as a feature might have them; return the list to which their background tasks append."""
    done: list[str] = []

    @app.get("/session/stream")
    async def stream_with_the_requests_session(session: SessionDep) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            for row in await session.scalars(select(User.email)):
                yield f"{row}\n"

        return StreamingResponse(lines())

    @app.get("/session/stream-typed")
    async def stream_typed_with_the_requests_session(session: SessionDep) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            for row in await session.fetch_all(EMAILS):
                yield f"{row.email}\n"

        return StreamingResponse(lines())

    @app.post("/session/task")
    async def start_task_with_the_requests_session(session: SessionDep, tasks: BackgroundTasks) -> str:
        async def work() -> None:
            session.add(User(email="late@example.com", password_hash=""))
            await session.commit()
            done.append("late")

        tasks.add_task(work)
        return "started"

    @app.get("/database/stream")
    async def stream_with_a_session_of_its_own(database: DatabaseDep) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async with database.read() as session:
                for row in await session.fetch_all(EMAILS):
                    yield f"{row.email}\n"
                # SQLAlchemy's own methods hold a connection until the session ends.
                for email in await session.scalars(select(User.email)):
                    yield f"{email}\n"

        return StreamingResponse(lines())

    @app.post("/database/task")
    async def start_task_with_a_session_of_its_own(database: DatabaseDep, tasks: BackgroundTasks) -> str:
        async def work() -> None:
            async with database.write() as session:
                await session.execute(text("UPDATE users SET name = 'changed'"))
            done.append("changed")

        tasks.add_task(work)
        return "started"

    return done


@pytest.fixture
def live_app(live_url: str) -> FastAPI:
    settings = make_settings(live_url, database_pool_size=POOL_SIZE, database_pool_timeout_seconds=10)
    return create_app(settings)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/session/stream"), ("GET", "/session/stream-typed"), ("POST", "/session/task")],
    ids=lambda value: value,
)
async def test_request_session_cannot_be_used_after_response_and_leaks_no_connection(
    live_app: FastAPI, logs: io.StringIO, method: str, path: str
) -> None:
    done = add_routes(live_app)
    async with open_client(live_app) as client:
        user = await create_account(client)
        for _ in range(REQUESTS):
            # The response has started: the server can only close the connection.
            with pytest.raises(RuntimeError, match="response already started"):
                await client.request(method, path)

        answers = [await client.get(ME, headers=user.headers) for _ in range(REQUESTS)]
        changed = await client.patch(ME, json={"name": "Ada"}, headers=user.headers)

    assert [answer.status_code for answer in answers] == [200] * REQUESTS
    assert changed.status_code == 200
    assert done == []
    assert re.search("This session is closed|This Session has been permanently closed", logs.getvalue())


async def test_separate_session_works_after_response_has_started(live_app: FastAPI) -> None:
    done = add_routes(live_app)
    async with open_client(live_app) as client:
        user = await create_account(client)
        streams = await asyncio.gather(*(client.get("/database/stream") for _ in range(REQUESTS)))
        tasks = await asyncio.gather(*(client.post("/database/task") for _ in range(REQUESTS)))
        me = (await client.get(ME, headers=user.headers)).json()

    assert [answer.text for answer in streams] == [f"{user.email}\n" * 2] * REQUESTS
    assert [answer.status_code for answer in tasks] == [200] * REQUESTS
    assert done == ["changed"] * REQUESTS
    assert me["name"] == "changed"


async def test_connection_returns_to_pool_when_client_leaves_stream(live_app: FastAPI) -> None:
    begun = asyncio.Event()

    @live_app.get("/endless")
    async def stream_without_end(database: DatabaseDep) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            async with database.read() as session:
                while True:
                    await session.scalar(text("SELECT 1"))
                    begun.set()
                    yield "line\n"
                    await asyncio.sleep(0)

        return StreamingResponse(lines())

    async def leave(client: httpx2.AsyncClient) -> None:
        begun.clear()
        reading = asyncio.create_task(client.get("/endless"))
        await begun.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)

    async with open_client(live_app) as client:
        user = await create_account(client)
        for _ in range(REQUESTS):
            await leave(client)

        answers = [await client.get(ME, headers=user.headers) for _ in range(REQUESTS)]

    assert [answer.status_code for answer in answers] == [200] * REQUESTS
