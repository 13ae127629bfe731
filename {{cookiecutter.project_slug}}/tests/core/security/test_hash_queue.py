"""The queue for password hashes: when it is full, requests that need a hash are refused, and others succeed."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from uuid import uuid4

import anyio.to_thread
import httpx2
import pytest
from fastapi import FastAPI, Request

from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.errors import UnavailableError
from app.core.security.hashing import PasswordHasher
from tests.support.accounts import PASSWORD, TOKEN_PATH, Account, create_account, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings

ME = "/api/v1/users/me"
SIGN_INS, PLACES, QUEUE = 60, 40, 10
PATIENCE_SECONDS = 120
CODE = "x" * 43
CONFIRMATION = {"current_password": PASSWORD}
NEW_PASSWORD = "another horse battery staple"
REQUESTS: dict[str, tuple[str, dict[str, str]]] = {
    "sign-up": ("/api/v1/users", {"email": "new@example.com", "password": PASSWORD}),
    "reset": ("/api/v1/auth/password/reset", {"token": CODE, "new_password": NEW_PASSWORD}),
    "verification": ("/api/v1/auth/email/verify", {"token": CODE, "password": PASSWORD}),
    "confirmation": ("/api/v1/auth/confirmation", CONFIRMATION),
    "passkey": ("/api/v1/auth/passkeys/options", CONFIRMATION),
    "password": (f"{ME}/password", {**CONFIRMATION, "new_password": NEW_PASSWORD}),
    "address": (f"{ME}/email", {**CONFIRMATION, "new_email": "other@example.com"}),
    "second factor": ("/api/v1/auth/second-factor", CONFIRMATION),
    "no second factor": ("/api/v1/auth/second-factor/disable", CONFIRMATION),
}
THROTTLED = {"throttling": True, "throttle_account_attempts": 1, "throttle_address_attempts": 2}


@asynccontextmanager
async def find_hasher(app: FastAPI) -> AsyncIterator[tuple[httpx2.AsyncClient, PasswordHasher]]:
    @app.get("/tested-hasher")
    async def note(request: Request) -> None:
        found.append(request.state.passwords)

    found: list[PasswordHasher] = []
    async with open_client(app) as client:
        await client.get("/tested-hasher")
        yield client, found[0]


@contextmanager
def fill_queue(passwords: PasswordHasher, settings: Settings) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(settings.password_hash_concurrency + (settings.password_hash_queue or 0)):
            stack.enter_context(passwords.reserve())
        yield


def assert_unavailable(answer: httpx2.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["retry-after"] == "1"


async def test_concurrent_sign_ins_do_not_delay_other_requests(live_url: str) -> None:
    app = create_app(make_settings(live_url, max_concurrent_requests=PLACES, password_hash_queue=QUEUE))
    goes_on = threading.Event()
    async with find_hasher(app) as (client, passwords), asyncio.timeout(PATIENCE_SECONDS):
        user = await create_account(client)
        # The only thread for hashing is busy until the other requests have been answered.
        busy = asyncio.create_task(anyio.to_thread.run_sync(goes_on.wait, limiter=passwords._limiter))
        sign_ins = [
            asyncio.create_task(request_token(client, username=f"{uuid4().hex}@example.com", password="a wrong guess"))
            for _ in range(SIGN_INS)
        ]
        try:
            done = asyncio.as_completed(sign_ins)
            refused = [await next(done) for _ in range(SIGN_INS - QUEUE - 1)]
            ordinary = [await client.get(ME, headers=user.headers), await client.get("/health")]
        finally:
            goes_on.set()
        await busy
        answers = [await task for task in sign_ins]

    assert [answer.status_code for answer in ordinary] == [200, 200]
    for answer in refused:
        assert_unavailable(answer)
    assert sum(answer.status_code == 400 for answer in answers) == QUEUE + 1


async def test_a_sign_in_that_finds_the_queue_full_is_not_counted(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, password_hash_queue=2, **THROTTLED)
    async with find_hasher(create_app(settings, database)) as (client, passwords):
        user = await create_account(client)
        with fill_queue(passwords, settings):
            refused = [await request_token(client, username=user.email, password="a wrong guess") for _ in range(5)]
            refreshed = await request_token(client, "refresh_token", refresh_token=user.refresh_token)
        right = await request_token(client, username=user.email, password=PASSWORD)

    for answer in refused:
        assert_unavailable(answer)
    assert (refreshed.status_code, right.status_code) == (200, 200)


@pytest.mark.parametrize("name", REQUESTS)
async def test_full_queue_refuses_every_hashing_route_without_counting_attempt(
    migrated_url: str, database: Database, name: str
) -> None:
    settings = make_settings(migrated_url, password_hash_queue=2, **THROTTLED)
    path, body = REQUESTS[name]
    async with find_hasher(create_app(settings, database)) as (client, passwords):
        user = await create_account(client)
        with fill_queue(passwords, settings):
            refused = [await client.post(path, json=body, headers=user.headers) for _ in range(5)]
        taken = await client.post(path, json=body, headers=user.headers)

    for answer in refused:
        assert_unavailable(answer)
    assert taken.status_code not in {429, 503}, taken.text


async def test_place_in_queue_is_released_after_every_response(migrated_url: str, database: Database) -> None:
    settings = make_settings(migrated_url, password_hash_queue=1)
    async with find_hasher(create_app(settings, database)) as (client, passwords):
        for path, body in REQUESTS.values():
            # A new account for each request: a new password ends every session.
            user: Account = await create_account(client)
            answer = await client.post(path, json=body, headers=user.headers)
            assert answer.status_code != 401
        await client.post(TOKEN_PATH, data={"grant_type": "password", "username": user.email, "password": "x"})
        with fill_queue(passwords, settings):
            refused = await request_token(client, username=user.email, password=PASSWORD)

    assert_unavailable(refused)


def test_queue_defaults_to_quarter_of_concurrent_requests(migrated_url: str) -> None:
    passwords = PasswordHasher(make_settings(migrated_url, max_concurrent_requests=40))

    with (
        fill_queue(passwords, make_settings(migrated_url, password_hash_queue=10)),
        pytest.raises(UnavailableError),
        passwords.reserve(),
    ):
        pass
