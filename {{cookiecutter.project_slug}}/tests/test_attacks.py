"""Attacks on every route of the service, including routes that are added later."""

import asyncio
import io
import json
import statistics
import time
from urllib.parse import quote
from uuid import uuid4

import httpx2
import pytest

from app.accounts.scopes import Scope
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.security.hashing import PasswordHasher
from app.core.security.tokens import TokenSigner
from tests.support.accounts import PASSWORD, TOKEN_PATH, Account, create_account, request_token, sign_in
from tests.support.applications import create_app
from tests.support.attacks import TOKEN_SCHEME, Operation, Target, check_guard, check_owner, list_operations, list_owned
from tests.support.bodies import make_request
from tests.support.clients import open_client
from tests.support.databases import make_settings, unreachable_url

ME = "/api/v1/users/me"
USERS = "/api/v1/users"
# Routes that need no access token: the caller has none yet, or sends another token that the route checks.
PUBLIC = {
    ("get", "/health"),
    ("get", "/health/live"),
    ("get", "/health/ready"),
    ("post", "/api/v1/auth/email/verification"),
    ("post", "/api/v1/auth/email/verify"),
    ("post", "/api/v1/auth/passkeys/sign-in"),
    ("post", "/api/v1/auth/passkeys/sign-in/options"),
    ("post", "/api/v1/auth/password/forgot"),
    ("post", "/api/v1/auth/password/reset"),
    ("post", "/api/v1/auth/revoke"),
    ("post", "/api/v1/auth/token"),
    ("post", "/api/v1/users"),
}
# Fields that cannot be made from the OpenAPI document, such as {("post", "/api/v1/orders"): {"currency": "EUR"}}.
# A file is (name, content, media type).
BODIES: dict[Operation, object] = {}
# The collections of fields that are not named after what they refer to, such as {"author_id": "/api/v1/people"}.
REFERENCES: dict[str, str] = {}
# Routes on items that other users may also access, or that cannot be created from the document: separate tests check
# the access to them.
CHECKED_ELSEWHERE: set[Operation] = {
    ("delete", "/api/v1/auth/passkeys/{passkey_id}"),
    ("get", "/api/v1/users/{user_id}"),
}
DOCUMENT = create_app(make_settings(unreachable_url())).openapi()
OPERATIONS = list_operations(DOCUMENT)
GUARDED = [operation for operation in OPERATIONS if operation not in PUBLIC]
OWNED = [operation for operation in list_owned(DOCUMENT) if operation not in CHECKED_ELSEWHERE]


def for_each(operations: list[Operation]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("method", "path"), operations, ids=[" ".join(each) for each in operations])


@pytest.fixture
def target(client: httpx2.AsyncClient, admin: Account) -> Target:
    return Target(DOCUMENT, client, admin, BODIES, REFERENCES)


def test_every_route_is_public_on_purpose_or_guarded() -> None:
    unguarded = {(method, path) for method, path in OPERATIONS if "security" not in DOCUMENT["paths"][path][method]}

    assert unguarded == PUBLIC


@for_each(GUARDED)
async def test_every_guarded_route_requires_token_with_sufficient_scope(
    target: Target, user: Account, settings: Settings, method: str, path: str
) -> None:
    tokens = TokenSigner(settings)
    claims = tokens.verify(user.access_token)
    useless = tokens.sign(claims.sub, claims.sid, "nothing")

    await check_guard(target, method, path, {"Authorization": f"Bearer {useless}"})


@for_each(OWNED)
async def test_items_of_other_users_are_not_found_and_stay_unchanged(
    target: Target, user: Account, admin: Account, method: str, path: str
) -> None:
    owner = await create_account(target.client)

    await check_owner(target, method, path, owner, [user, admin])


def test_exceptions_name_existing_routes() -> None:
    assert {*BODIES, *CHECKED_ELSEWHERE} - {*OPERATIONS} == set()
    assert {*REFERENCES.values()} - {path for _, path in OPERATIONS} == set()


@pytest.mark.parametrize(
    "field", ["id", "is_admin", "is_active", "password_hash", "created_at", "owner_id", "__class__"]
)
@for_each([("post", USERS), ("patch", ME), ("post", f"{ME}/password")])
async def test_user_cannot_set_protected_fields(
    client: httpx2.AsyncClient, user: Account, method: str, path: str, field: str
) -> None:
    before = (await client.get(ME, headers=user.headers)).json()
    body = {**make_request(DOCUMENT, method, path, {})["json"], field: True}

    answer = await client.request(method, path, json=body, headers=user.headers)

    assert answer.status_code == 422
    assert [error["location"] for error in answer.json()["errors"]] == [["body", field]]
    assert (await client.get(ME, headers=user.headers)).json() == before


async def test_sign_in_ignores_planted_tokens_and_creates_new_session(
    client: httpx2.AsyncClient, user: Account
) -> None:
    """Session fixation: an attacker who planted a token in a browser has no access to the session of the user."""
    victim = await create_account(client)
    form = {"grant_type": "password", "username": victim.email, "password": PASSWORD}
    form |= {"refresh_token": user.refresh_token, "session_id": "planted"}

    answer = await client.post(TOKEN_PATH, data=form, headers={**user.headers, "Cookie": "session=planted"})

    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    signed_in = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    assert (await client.get(ME, headers=signed_in)).json()["id"] == victim.id
    assert (await client.get(ME, headers=user.headers)).json()["id"] == user.id


@pytest.mark.parametrize(
    "password",
    [
        "",
        "x",
        "x" * 11,
        "x" * 1025,
        "x" * 16_000,
        "\0",
        "\0" * 12,
        "e\u0301" * 600,
        "\u202e" * 12,
        "🧑‍🤝‍🧑" * 200,
        "' OR 1=1 --",
        "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2g",
        "%00%0a",
    ],
    ids=lambda password: ascii(password)[:30],
)
async def test_unusual_password_is_refused_at_sign_in_without_server_error(
    client: httpx2.AsyncClient, user: Account, password: str
) -> None:
    answer = await request_token(client, username=user.email, password=password)

    assert answer.status_code == 400
    assert answer.json()["error"] == ("invalid_grant" if password else "invalid_request")


async def test_form_of_several_megabytes_is_refused(client: httpx2.AsyncClient, user: Account) -> None:
    answer = await request_token(client, username=user.email, password="x" * 5_000_000)

    assert answer.status_code == 413


@pytest.mark.parametrize(
    "email",
    [
        "ADA@EXAMPLE.COM",
        "Ada@Example.com",
        "ada@EXAMPLE.com",
        " ada@example.com ",
        "ada@\uff45xample.com",
        "ada@example\u3002com",
    ],
)
async def test_address_in_another_form_cannot_create_second_account(client: httpx2.AsyncClient, email: str) -> None:
    await client.post(USERS, json={"email": "ada@example.com", "password": PASSWORD})

    answer = await client.post(USERS, json={"email": email, "password": PASSWORD})

    assert answer.status_code in (409, 422)


@pytest.mark.parametrize(
    "email",
    [
        "Ada@Example.com",
        " ada@example.com ",
        "ada@xn--bcher-kva.example.com",
        "ada@\uff45xample.com",
        "ade\u0301@example.com",
    ],
)
async def test_user_can_sign_in_with_address_typed_at_sign_up(client: httpx2.AsyncClient, email: str) -> None:
    created = await client.post(USERS, json={"email": email, "password": PASSWORD})

    answer = await request_token(client, username=email, password=PASSWORD)

    assert (created.status_code, answer.status_code) == (201, 200)


@pytest.mark.parametrize(
    "email",
    [
        "ada@example.com\r\nBcc: x@example.com",
        "ada@example.com\0",
        "ada@example.com,eve@example.com",
        "Ada <ada@example.com>",
        "ada@localhost",
        "ada@[127.0.0.1]",
        "a\u202eda@example.com",
        '"ada eve"@example.com',
        "ada@-example.com",
        "ada@" + "x" * 64 + ".com",
    ],
)
async def test_invalid_address_is_refused_at_sign_up(client: httpx2.AsyncClient, email: str) -> None:
    answer = await client.post(USERS, json={"email": email, "password": PASSWORD})

    assert answer.status_code == 422


async def test_lookalike_address_is_separate_account(client: httpx2.AsyncClient) -> None:
    await client.post(USERS, json={"email": "ada@example.com", "password": PASSWORD})

    # The first letter is Cyrillic, so this is another address, and the new account gives no access to Ada's.
    created = await client.post(USERS, json={"email": "\u0430da@example.com", "password": "another long password"})

    assert created.status_code == 201
    assert (
        await request_token(client, username="ada@example.com", password="another long password")
    ).status_code == 400


AT_ONCE = 50
LINES = "evil\r\nX-Injected: yes"


async def test_request_cannot_add_response_headers_or_log_lines(
    client: httpx2.AsyncClient, user: Account, logs: io.StringIO
) -> None:
    answers = [
        await client.get(f"/api/v1/{quote(LINES)}", headers=user.headers),
        await client.get(ME, headers={"Authorization": f"Bearer {quote(LINES)}"}),
        await client.get("/api/v1/users", params={"cursor": LINES}, headers=user.headers),
        await request_token(client, username=LINES, password=LINES, scope=LINES),
        await request_token(client, LINES),
        await client.get(ME, headers={"X-Request-ID": 'x" evil="yes', **user.headers}),
        await client.get(ME, headers={"User-Agent": "\x1b]0;evil\x07", **user.headers}),
    ]

    lines = logs.getvalue().splitlines()
    assert len(lines) >= len(answers)
    assert all(isinstance(json.loads(line), dict) for line in lines)
    assert not any("x-injected" in answer.headers for answer in answers)
    assert "\x1b" not in logs.getvalue()


async def test_response_time_does_not_reveal_whether_address_has_account(
    settings: Settings, database: Database
) -> None:
    """Uses a hash as expensive as in production: with a cheap one, a difference would not be measurable."""
    costly = settings.model_copy(update={"password_hash_memory_cost": 19 * 1024, "password_hash_time_cost": 2})
    async with open_client(create_app(costly, database)) as client:
        user = await create_account(client)

        async def measure(username: str) -> float:
            started = time.perf_counter()
            await request_token(client, username=username, password="not the password")
            return time.perf_counter() - started

        # Measured in turns, so that other load on the machine affects both requests.
        ratios = [await measure(user.email) / await measure(f"{uuid4().hex}@example.com") for _ in range(25)]

    # Without a dummy hash, the response for an unknown address would be many times as fast.
    assert 0.5 < statistics.median(ratios) < 2


async def test_concurrent_sign_ins_do_not_block_event_loop(settings: Settings, live_url: str) -> None:
    """Compares CPU times, which other load on the machine does not change."""
    live = make_settings(live_url, password_hash_memory_cost=19 * 1024, password_hash_time_cost=2)
    # The minimum, because the first hash also loads the library.
    seconds_of_a_hash = min([await measure_hash(PasswordHasher(live)) for _ in range(3)])
    async with open_client(create_app(live)) as client:
        user = await create_account(client)
        started = seconds_beside_the_loop()
        sign_ins = [asyncio.create_task(sign_in(client, user.id, user.email)) for _ in range(AT_ONCE)]
        answers = []
        while not all(task.done() for task in sign_ins):
            answers.append((await client.get("/health/live")).status_code)
            await asyncio.sleep(0.001)
        await asyncio.gather(*sign_ins)
        seconds = seconds_beside_the_loop() - started

    assert set(answers) == {200}
    # SQLite's statements, which also run in other threads, take only a tenth of this time.
    assert seconds > AT_ONCE * seconds_of_a_hash / 2


async def measure_hash(passwords: PasswordHasher) -> float:
    started = time.process_time()
    await passwords.hash(PASSWORD)
    return time.process_time() - started


def seconds_beside_the_loop() -> float:
    return time.process_time() - time.thread_time()


def test_every_scope_is_documented() -> None:
    flow = DOCUMENT["components"]["securitySchemes"][TOKEN_SCHEME]["flows"]["password"]

    assert set(flow["scopes"]) == set(Scope)
