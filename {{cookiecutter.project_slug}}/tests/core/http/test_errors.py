"""Every error response is a problem document that reveals no internals."""

import io
import json
from collections.abc import AsyncIterator

import httpx2
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app.accounts.models import User
from app.core.db.session import Database
from app.core.dependencies import SessionDep
from app.core.errors import ConflictError
from app.core.http.problems import handle_database_error
from tests.support.accounts import PASSWORD, Account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings

USERS = "/api/v1/users"
JSON = {"Content-Type": "application/json"}


def assert_problem(response: httpx2.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem.keys() >= {"type", "title", "status", "detail", "instance", "request_id"}
    assert problem["status"] == status
    assert problem["instance"] == response.request.url.path
    assert problem["request_id"] == response.headers["x-request-id"]


async def test_unknown_path_returns_404_problem(client: httpx2.AsyncClient) -> None:
    assert_problem(await client.get("/nowhere"), 404)


async def test_wrong_method_returns_405_with_allowed_methods(client: httpx2.AsyncClient) -> None:
    response = await client.post("/health/live")

    assert_problem(response, 405)
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"{", 422),
        (b"", 422),
        (b"\xff\xfe", 422),
        (b"NaN", 422),
        (b'{"email": NaN}', 422),
        (b"[" * 100_000, 400),
        (b'{"email": ' + b"9" * 5000 + b"}", 400),
        (b'{"email": "\\ud800"}', 422),
        (b'{"\\ud800": 1}', 422),
        (b'{"email": "a@example.com", "password": "\\ud800\\ud800\\ud800\\ud800\\ud800\\ud800\\ud800aaaaaa"}', 422),
        (b'{"email": {"a": {"b": 1}}}', 422),
        (b'{"email": "a@example.com", "email": 1}', 422),
    ],
)
async def test_invalid_body_returns_problem(client: httpx2.AsyncClient, content: bytes, status: int) -> None:
    response = await client.post(USERS, content=content, headers=JSON)

    assert_problem(response, status)


@pytest.mark.parametrize(
    "media_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
async def test_body_that_is_not_json_is_refused(client: httpx2.AsyncClient, media_type: str | None) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}

    response = await client.post(USERS, content=b'{"email": "a@example.com"}', headers=headers)

    assert_problem(response, 415)


@pytest.mark.parametrize(
    "media_type", ["application/json", "application/json; charset=utf-8", "application/merge-patch+json"]
)
async def test_every_json_media_type_is_accepted(client: httpx2.AsyncClient, user: Account, media_type: str) -> None:
    response = await client.patch(f"{USERS}/me", content=b"{}", headers={**user.headers, "Content-Type": media_type})

    assert response.status_code == 200


@pytest.mark.parametrize("in_chunks", [True, False])
async def test_body_over_size_limit_is_refused(migrated_url: str, database: Database, in_chunks: bool) -> None:
    body = json.dumps({"email": "a@example.com", "password": PASSWORD, "name": "x" * 2000}).encode()

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    async with open_client(create_app(make_settings(migrated_url, max_body_bytes=1000), database)) as client:
        response = await client.post(USERS, content=chunks() if in_chunks else body, headers=JSON)
        form = await client.post("/api/v1/auth/token", data={"grant_type": "password", "username": "x" * 2000})

    assert_problem(response, 413)
    assert_problem(form, 413)


@pytest.mark.parametrize("user_id", ["x", "1", "%00", "..%2f..", "01890000-0000-7000-8000-00000000000g", "é"])
async def test_invalid_id_returns_problem(client: httpx2.AsyncClient, user: Account, user_id: str) -> None:
    response = await client.get(f"{USERS}/{user_id}", headers=user.headers)

    assert response.status_code in {400, 403, 404, 422}
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Basic YTpi", "bearer a.b.c", "Bearer é", "Bearer a b", f"Bearer {'x' * 5000}"],
)
async def test_a_broken_authorization_is_unauthorized(client: httpx2.AsyncClient, authorization: str) -> None:
    response = await client.get(f"{USERS}/me", headers=[(b"Authorization", authorization.encode())])

    assert_problem(response, 401)
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_validation_error_lists_every_field(client: httpx2.AsyncClient) -> None:
    response = await client.post(USERS, json={"email": "x", "password": "short", "extra": 1})

    assert_problem(response, 422)
    assert sorted(error["location"][-1] for error in response.json()["errors"]) == ["email", "extra", "password"]


async def test_too_many_unknown_fields_are_reported_as_one_error(client: httpx2.AsyncClient) -> None:
    response = await client.post(USERS, json={f"field {number}": 1 for number in range(20_000)})

    assert_problem(response, 422)
    assert [error["message"] for error in response.json()["errors"]] == ["must have at most 100 fields"]


async def test_long_error_list_is_truncated_and_states_total(app: FastAPI) -> None:
    @app.post("/numbers")
    async def take(numbers: list[int]) -> None: ...

    async with open_client(app) as client:
        response = await client.post("/numbers", json=["x"] * 20_000)

    assert_problem(response, 422)
    assert response.json()["detail"] == "The request is not valid: see errors, the first 100 of 20000."
    assert len(response.json()["errors"]) == 100
    assert len(response.content) < 20_000


async def test_unknown_host_is_refused(client: httpx2.AsyncClient) -> None:
    response = await client.get("/nowhere", headers={"Host": "evil.example"})

    assert_problem(response, 400)


@pytest.mark.parametrize(
    ("statement", "status"),
    [("SELECT 1 FROM no_such_table", {500, 503}), ("INSERT INTO users (id) VALUES (NULL)", {500})],
)
async def test_database_error_response_reveals_no_details(app: FastAPI, statement: str, status: set[int]) -> None:
    @app.post("/broken")
    async def broken(session: SessionDep) -> None:
        await session.execute(text(statement))

    async with open_client(app) as client:
        response = await client.post("/broken")

    assert response.status_code in status
    assert_problem(response, response.status_code)
    assert "users" not in response.text
    assert "no_such_table" not in response.text


SESSION = """
    INSERT INTO sessions (id, user_id, scope, device, last_used_at, expires_at, created_at) VALUES
    ('01890000000070008000000000000000', '01890000000070008000000000000000', 'x', 'x', '2026-01-01', '2026-01-01', {})
"""


@pytest.mark.parametrize(
    ("statement", "status"),
    [
        (SESSION.format("'2026-01-01'"), 409),
        (SESSION.format("NULL"), 500),
        ("INSERT INTO alembic_version SELECT version_num FROM alembic_version", 409),
    ],
    ids=["foreign key", "not null", "unique"],
)
async def test_foreign_key_or_unique_violation_returns_409_and_not_null_violation_returns_500(
    app: FastAPI, logs: io.StringIO, statement: str, status: int
) -> None:
    @app.post("/broken")
    async def broken(session: SessionDep) -> None:
        await session.execute(text(statement))

    async with open_client(app) as client:
        response = await client.post("/broken")

    assert_problem(response, status)
    assert "constraint" not in response.text
    assert "constraint" in logs.getvalue()


async def test_an_unhandled_error_is_logged_with_the_requests_id(app: FastAPI, logs: io.StringIO) -> None:
    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the inside")

    async with open_client(app) as client:
        response = await client.get("/broken", headers={"X-Request-ID": "request-0123"})

    assert_problem(response, 500)
    assert "the inside" not in response.text
    assert response.json()["request_id"] == "client-request-0123"
    assert "the inside" in logs.getvalue()


async def test_an_error_after_the_headers_ends_the_connection(app: FastAPI) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("too late")

    @app.get("/broken")
    async def broken() -> StreamingResponse:
        return StreamingResponse(stream())

    async with open_client(app) as client:
        with pytest.raises(RuntimeError, match="too late"):
            await client.get("/broken")


@pytest.mark.parametrize(("commit_anyway", "expected"), [(False, 0), (True, 1)])
async def test_error_rolls_back_unless_it_asks_for_commit(
    app: FastAPI, database: Database, commit_anyway: bool, expected: int
) -> None:
    @app.post("/refuse")
    async def refuse(session: SessionDep) -> None:
        session.add(User(email="a@example.com", password_hash="x"))
        await session.flush()
        raise ConflictError("no", commit_anyway=commit_anyway)

    async with open_client(app) as client:
        response = await client.post("/refuse")
        async with database.read() as session:
            count = await session.scalar(text("SELECT count(*) FROM users"))

    assert response.status_code == 409
    assert count == expected


async def test_failed_commit_returns_500(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.post("/commit", status_code=201)
    async def commit(session: SessionDep) -> None:
        async def fail() -> None:
            raise RuntimeError("commit failed")

        monkeypatch.setattr(session, "commit", fail)

    async with open_client(app) as client:
        response = await client.post("/commit")

    assert_problem(response, 500)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("DELETE", "/labels/1", "still-referenced"),
        ("POST", "/labels/1/delete", "still-referenced"),
        ("POST", "/labels", "changed-meanwhile"),
    ],
)
async def test_violated_foreign_key_is_a_conflict(method: str, path: str, code: str) -> None:
    request = Request({"type": "http", "method": method, "path": path, "headers": [], "server": ("localhost", 80)})
    error = IntegrityError("", {}, Exception("FOREIGN KEY constraint failed"))

    response = await handle_database_error(request, error)

    assert (response.status_code, json.loads(bytes(response.body))["code"]) == (409, code)
