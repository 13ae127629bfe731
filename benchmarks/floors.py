"""Minimal applications with the same responses as the service; the benchmarks compare the service with them.

They have no error handling and no logs. The only settings are three environment variables: `FLOOR_DATABASE` is the
address of the service's database, `FLOOR_KEY` the key that signs its tokens, `FLOOR_ISSUER` the issuer in them.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import aiosqlite
import psycopg
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.security import OAuth2PasswordBearer
from jose import jwk, jwt
from pydantic import BaseModel
from sqlalchemy import make_url, select
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.types import Receive, Scope, Send
from uuid_utils.compat import uuid7

ALGORITHM = "HS256"
POOL_SIZE = 10
PAGE = 50


class Liveness(BaseModel):
    status: str = "ok"


class Claims(BaseModel):
    sub: UUID
    sid: UUID
    scope: str


class User(BaseModel):
    id: UUID
    email: str
    name: str
    is_active: bool
    is_admin: bool
    email_verified_at: datetime | None
    created_at: datetime
    updated_at: datetime


class TodoIn(BaseModel):
    title: str
    description: str = ""
    completed: bool = False


class Todo(TodoIn):
    id: UUID
    created_at: datetime
    updated_at: datetime


class Page(BaseModel):
    items: list[Todo]


USER_FIELDS = tuple(User.model_fields)
TODO_FIELDS = ("id", "title", "description", "completed", "created_at", "updated_at")
OF_TODOS = ", ".join(TODO_FIELDS)
CALLER = f"""
    SELECT {", ".join(f"users.{name}" for name in USER_FIELDS)} FROM users JOIN sessions ON sessions.user_id = users.id
    WHERE sessions.id = ? AND sessions.expires_at > ? AND users.id = ? AND users.is_active
"""  # noqa: S608  # names of fields above
TODO = f"SELECT {OF_TODOS} FROM todos WHERE id = ? AND owner_id = ?"  # noqa: S608  # see above
TODOS = f"SELECT {OF_TODOS} FROM todos WHERE owner_id = ? ORDER BY created_at DESC, id DESC LIMIT {PAGE}"  # noqa: S608  # see above
INSERT = f"""
    INSERT INTO todos (owner_id, title, description, completed, id, created_at, updated_at)
    VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING {OF_TODOS}
"""  # noqa: S608  # see above


class Postgres:
    """Connections of psycopg in autocommit mode: each statement is a transaction."""

    def __init__(self) -> None:
        self._free: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()

    async def open(self, stack: AsyncExitStack) -> None:
        for _ in range(POOL_SIZE):
            connection = await psycopg.AsyncConnection.connect(os.environ["FLOOR_DATABASE"], autocommit=True)
            self._free.put_nowait(await stack.enter_async_context(connection))

    async def fetch(self, statement: str, *values: object) -> list[Any]:
        connection = await self._free.get()
        try:
            return await (await connection.execute(statement.replace("?", "%s"), values)).fetchall()
        finally:
            self._free.put_nowait(connection)


class Sqlite:
    """Connections of aiosqlite; one of them runs all writes, one at a time."""

    def __init__(self) -> None:
        self._free: asyncio.Queue[aiosqlite.Connection] = asyncio.Queue()
        self._writing = asyncio.Lock()

    async def open(self, stack: AsyncExitStack) -> None:
        for number in range(POOL_SIZE):
            connection = await stack.enter_async_context(
                aiosqlite.connect(os.environ["FLOOR_DATABASE"], isolation_level=None)
            )
            await connection.execute("PRAGMA synchronous = NORMAL")
            if number:
                self._free.put_nowait(connection)
            else:
                self._writer = connection

    async def fetch(self, statement: str, *values: object) -> list[Any]:
        adapted = [_adapt(value) for value in values]
        if statement is INSERT:
            async with self._writing:
                return list(await self._writer.execute_fetchall(statement, adapted))
        connection = await self._free.get()
        try:
            return list(await connection.execute_fetchall(statement, adapted))
        finally:
            self._free.put_nowait(connection)


def _adapt(value: object) -> object:
    """Return the value as SQLAlchemy stores it in SQLite."""
    if isinstance(value, UUID):
        return value.hex
    return str(value.replace(tzinfo=None)) if isinstance(value, datetime) else value


oauth2_scheme = OAuth2PasswordBearer(tokenUrl="token")


async def get_claims(token: Annotated[str, Depends(oauth2_scheme)], request: Request) -> Claims:
    issuer = os.environ["FLOOR_ISSUER"]
    payload = jwt.decode(token, request.state.key, algorithms=[ALGORITHM], audience=issuer, issuer=issuer)
    return Claims.model_validate(payload)


ClaimsDep = Annotated[Claims, Depends(get_claims)]

router = APIRouter()


@router.get("/claims")
async def read_claims(claims: ClaimsDep) -> Claims:
    return claims


@router.get("/me", response_model=User)
async def read_me(claims: ClaimsDep, request: Request) -> dict[str, Any]:
    rows = await request.state.database.fetch(CALLER, claims.sid, datetime.now(UTC), claims.sub)
    return dict(zip(USER_FIELDS, rows[0], strict=True))


@router.get("/todos/{todo_id}", response_model=Todo)
async def read_todo(todo_id: UUID, claims: ClaimsDep, request: Request) -> dict[str, Any]:
    rows = await request.state.database.fetch(TODO, todo_id, claims.sub)
    return dict(zip(TODO_FIELDS, rows[0], strict=True))


@router.get("/todos", response_model=Page)
async def list_todos(claims: ClaimsDep, request: Request) -> dict[str, Any]:
    rows = await request.state.database.fetch(TODOS, claims.sub)
    return {"items": [dict(zip(TODO_FIELDS, row, strict=True)) for row in rows]}


@router.post("/todos", status_code=201, response_model=Todo)
async def create_todo(data: TodoIn, claims: ClaimsDep, request: Request) -> dict[str, Any]:
    now = datetime.now(UTC)
    values = (claims.sub, data.title, data.description, data.completed, uuid7(), now, now)
    rows = await request.state.database.fetch(INSERT, *values)
    return dict(zip(TODO_FIELDS, rows[0], strict=True))


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        database = Postgres() if "host=" in os.environ["FLOOR_DATABASE"] else Sqlite()
        await database.open(stack)
        yield {"database": database, "key": jwk.construct(os.environ["FLOOR_KEY"], ALGORITHM)}


async def read_liveness() -> Liveness:
    return Liveness()


def idle() -> FastAPI:
    """Return the application of a minimal worker: FastAPI, and an SQLAlchemy engine that has connected once."""

    @asynccontextmanager
    async def connect(_app: FastAPI) -> AsyncIterator[None]:
        scheme = "postgresql+psycopg" if "host=" in os.environ["FLOOR_DATABASE"] else "sqlite+aiosqlite"
        engine = create_async_engine(make_url(os.environ["FLOOR_DATABASE"]).set(drivername=scheme))
        async with engine.connect() as connection:
            await connection.execute(select(1))
        yield
        await engine.dispose()

    app = FastAPI(openapi_url=None, lifespan=connect)
    app.add_api_route("/health/live", read_liveness)
    return app


async def raw(scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer the liveness probe as an ASGI application without a framework."""
    if scope["type"] == "http":
        headers = [(b"content-type", b"application/json"), (b"content-length", b"15")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"status":"ok"}'})


def bare() -> FastAPI:
    app = FastAPI(openapi_url=None)
    app.add_api_route("/health/live", read_liveness)
    return app


def driver() -> FastAPI:
    """Return an application whose routes verify a token and, except for /claims, run one statement."""
    app = FastAPI(openapi_url=None, lifespan=lifespan)
    app.add_api_route("/health/live", read_liveness)
    app.include_router(router)
    return app
