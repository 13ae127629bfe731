"""Requests that pages of other sites can make a browser send to the service."""

import io
from collections.abc import Iterator
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI

from app.core.db.session import Database
from app.core.http.request import SAFE_METHODS
from tests.support.accounts import PASSWORD, TOKEN_PATH, Account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings

ALLOWED = "https://app.example.com"
EVIL = "https://evil.example"
FOREIGN = [
    {"Origin": EVIL},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://["},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": f"{ALLOWED}.evil.example"},
    {"Origin": f"{ALLOWED}:8443"},
    {"Origin": EVIL, "Sec-Fetch-Site": "cross-site"},
    {"Origin": EVIL, "Sec-Fetch-Site": "same-site"},
    {"Origin": EVIL, "Sec-Fetch-Site": "none"},
    {"Origin": EVIL, "Sec-Fetch-Site": "same-origin"},
    {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "nonsense"},
]
OWN = [
    {},
    {"Origin": "http://localhost"},
    {"Origin": "https://localhost:8443"},
    {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Origin": "null", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": ALLOWED},
    {"Origin": ALLOWED, "Sec-Fetch-Site": "cross-site"},
    {"Origin": ALLOWED, "Sec-Fetch-Site": "same-site"},
]
# The media types that a form, or `fetch` with the mode "no-cors", can send.
FORMS = ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"]


async def sign_up(client: httpx2.AsyncClient) -> str:
    email = f"{uuid4().hex}@example.com"
    await client.post("/api/v1/users", json={"email": email, "password": PASSWORD})
    return email


async def try_password(client: httpx2.AsyncClient, email: str, password: str, **headers: str) -> httpx2.Response:
    form = {"grant_type": "password", "username": email, "password": password}
    return await client.post(TOKEN_PATH, data=form, headers=headers)


async def test_pages_of_other_sites_cannot_lock_a_visitor_out(
    migrated_url: str, database: Database, logs: io.StringIO
) -> None:
    limits = {"throttling": True, "throttle_account_attempts": 1, "throttle_address_attempts": 2}
    app = create_app(make_settings(migrated_url, cors_origins=ALLOWED, **limits), database)
    async with open_client(app) as client:
        email = await sign_up(client)
        refused = [await try_password(client, email, "a wrong password", **headers) for headers in FOREIGN]
        right = await try_password(client, email, PASSWORD)

    assert {answer.status_code for answer in refused} == {403}
    assert "CORS_ORIGINS" in refused[0].json()["detail"]
    assert "sign-in failed" not in logs.getvalue()
    assert right.status_code == 200


@pytest.mark.parametrize("headers", OWN, ids=str)
async def test_own_pages_allowed_origins_and_other_clients_can_sign_in(
    migrated_url: str, database: Database, headers: dict[str, str]
) -> None:
    app = create_app(make_settings(migrated_url, cors_origins=ALLOWED), database)
    async with open_client(app) as client:
        answer = await try_password(client, await sign_up(client), PASSWORD, **headers)

    assert answer.status_code == 200


async def test_every_origin_can_sign_in_with_wildcard_cors_origins(migrated_url: str, database: Database) -> None:
    app = create_app(make_settings(migrated_url, cors_origins="*"), database)
    async with open_client(app) as client:
        answer = await try_password(client, await sign_up(client), PASSWORD, Origin=EVIL)

    assert answer.status_code == 200


async def test_pages_of_other_sites_cannot_end_session(client: httpx2.AsyncClient, user: Account) -> None:
    refused = await client.post("/api/v1/auth/revoke", data={"token": user.access_token}, headers={"Origin": EVIL})

    assert refused.status_code == 403
    assert (await client.get("/api/v1/users/me", headers=user.headers)).status_code == 200


def list_open(app: FastAPI) -> Iterator[tuple[str, str]]:
    """List the unsafe operations without authentication."""
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            if method.upper() not in SAFE_METHODS and not operation.get("security"):
                yield method.upper(), path


async def test_unauthenticated_write_routes_refuse_other_sites(app: FastAPI, client: httpx2.AsyncClient) -> None:
    checked = 0
    for method, path in list_open(app):
        for headers in ({"Origin": EVIL}, {"Sec-Fetch-Site": "cross-site"}):
            for media_type in (*FORMS, "application/json"):
                answer = await client.request(
                    method, path, content=b"%{", headers={"Content-Type": media_type, **headers}
                )
                assert answer.status_code == 403, f"{method} {path} {media_type}"
                checked += 1
    assert checked > 0
