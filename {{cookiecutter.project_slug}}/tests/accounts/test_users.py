import asyncio

import httpx2
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.users.service import ACTIVE_ADMINS, _list_query
from app.core.db.session import Database, open_database
from tests.support.accounts import PASSWORD, Account, confirmed, create_account, request_token, sign_in
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import execute_async, make_settings
from tests.support.mail import ENCODED_ADDRESSES

USERS = "/api/v1/users"
ME = f"{USERS}/me"
NEW_PASSWORD = "a new and long password"
PATIENCE_SECONDS = 60


async def test_a_new_account_is_found_at_its_location(client: httpx2.AsyncClient) -> None:
    created = await client.post(USERS, json={"email": "Ada@Example.com", "password": PASSWORD, "name": " Ada "})
    account = await sign_in(client, created.json()["id"], "ada@example.com")

    read = await client.get(created.headers["location"], headers=account.headers)

    assert created.status_code == 201
    assert read.json() == created.json()
    assert read.json().keys() == {
        "id",
        "email",
        "name",
        "is_active",
        "is_admin",
        "email_verified_at",
        "created_at",
        "updated_at",
    }
    assert (read.json()["email"], read.json()["name"]) == ("ada@example.com", "Ada")
    assert read.json()["is_admin"] is False


@pytest.mark.parametrize("email", ["ada@example.com", "ADA@example.com", "ada@EXAMPLE.com"])
async def test_a_taken_address_is_refused(client: httpx2.AsyncClient, email: str) -> None:
    await client.post(USERS, json={"email": "ada@example.com", "password": PASSWORD})

    response = await client.post(USERS, json={"email": email, "password": PASSWORD})

    assert response.status_code == 409
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "change",
    [
        {"email": None},
        {"email": "no address"},
        {"email": "a@b"},
        {"email": f"{'a' * 250}@example.com"},
        {"email": "a\0b@example.com"},
        {"password": "x" * 11},
        {"password": "x" * 1025},
        {"password": None},
        {"name": "x" * 201},
        {"name": "two\nlines"},
        {"is_admin": True},
        {"is_active": False},
        {"id": "01890000-0000-7000-8000-000000000000"},
    ],
)
async def test_invalid_sign_up_is_refused(client: httpx2.AsyncClient, change: dict[str, object]) -> None:
    response = await client.post(USERS, json={"email": "ada@example.com", "password": PASSWORD, **change})

    assert response.status_code == 422, response.text
    assert [error["location"] for error in response.json()["errors"]] == [["body", next(iter(change))]]


@pytest.mark.parametrize("password", ["lower casex", "x" * 1023, "\0" * 11, "🎉" * 1023, "with spaces in it "])
async def test_a_password_of_any_characters_signs_in(client: httpx2.AsyncClient, password: str) -> None:
    # A password that only repeats one character is refused, so another character is added.
    password += "!"
    created = await client.post(USERS, json={"email": "ada@example.com", "password": password})

    response = await request_token(client, username="ada@example.com", password=password)

    assert created.status_code == 201
    assert response.status_code == 200


async def test_refused_password_is_not_in_the_response(client: httpx2.AsyncClient) -> None:
    response = await client.post(USERS, json={"email": "ada@example.com", "password": "hunter2"})

    assert "hunter2" not in response.text


async def test_sign_up_can_be_closed(migrated_url: str, database: Database) -> None:
    async with open_client(create_app(make_settings(migrated_url, registration_open=False), database)) as client:
        response = await client.post(USERS, json={"email": "ada@example.com", "password": PASSWORD})

    assert response.status_code == 403


async def test_user_can_change_only_own_name(client: httpx2.AsyncClient, user: Account) -> None:
    changed = await client.patch(ME, json={"name": "Ada"}, headers=user.headers)

    assert changed.json()["name"] == "Ada"
    for field in ("email", "is_admin", "is_active", "password_hash", "id"):
        assert (await client.patch(ME, json={field: "x"}, headers=user.headers)).status_code == 422
    assert (await client.patch(ME, json={}, headers=user.headers)).json() == changed.json()


async def test_a_deleted_account_is_gone_at_once(client: httpx2.AsyncClient, user: Account) -> None:
    response = await client.delete(ME, headers=await confirmed(client, user))

    assert response.status_code == 204
    assert (await client.get(ME, headers=user.headers)).status_code == 401
    assert (await request_token(client, username=user.email, password=PASSWORD)).status_code == 400


async def test_a_new_password_ends_every_session_and_begins_a_new_one(
    client: httpx2.AsyncClient, user: Account
) -> None:
    other = await sign_in(client, user.id, user.email)

    response = await client.post(
        f"{ME}/password", json={"current_password": PASSWORD, "new_password": NEW_PASSWORD}, headers=user.headers
    )

    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    for ended in (user, other):
        assert (await client.get(ME, headers=ended.headers)).status_code == 401
        assert (await request_token(client, "refresh_token", refresh_token=ended.refresh_token)).status_code == 400
    begun = {"Authorization": f"Bearer {response.json()['access_token']}"}
    assert (await client.get(ME, headers=begun)).json()["id"] == user.id
    refreshed = await request_token(client, "refresh_token", refresh_token=response.json()["refresh_token"])
    assert refreshed.json()["scope"] == response.json()["scope"] == "account"
    assert (await request_token(client, username=user.email, password=PASSWORD)).status_code == 400
    assert (await request_token(client, username=user.email, password=NEW_PASSWORD)).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"current_password": "wrong password 123", "new_password": NEW_PASSWORD},
        {"current_password": PASSWORD, "new_password": "short"},
        {"current_password": PASSWORD},
        {"new_password": NEW_PASSWORD},
    ],
)
async def test_a_refused_change_of_the_password_changes_nothing(
    client: httpx2.AsyncClient, user: Account, body: dict[str, str]
) -> None:
    other = await sign_in(client, user.id, user.email)

    response = await client.post(f"{ME}/password", json=body, headers=user.headers)

    assert response.status_code == 422
    assert (await client.get(ME, headers=other.headers)).status_code == 200
    assert (await request_token(client, username=user.email, password=PASSWORD)).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ME),
        ("PATCH", ME),
        ("DELETE", ME),
        ("POST", f"{ME}/password"),
        ("GET", USERS),
        ("GET", f"{USERS}/01890000-0000-7000-8000-000000000000"),
        ("PATCH", f"{USERS}/01890000-0000-7000-8000-000000000000"),
        ("DELETE", f"{USERS}/01890000-0000-7000-8000-000000000000"),
    ],
)
async def test_request_without_token_is_refused(client: httpx2.AsyncClient, method: str, path: str) -> None:
    body = {"name": "x"} if method in {"PATCH", "POST"} else None
    response = await client.request(method, path, json=body)

    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"


async def test_user_cannot_find_out_whether_another_account_exists(client: httpx2.AsyncClient, user: Account) -> None:
    stranger = await create_account(client)

    existing = await client.get(f"{USERS}/{stranger.id}", headers=user.headers)
    missing = await client.get(f"{USERS}/01890000-0000-7000-8000-000000000000", headers=user.headers)

    assert existing.status_code == missing.status_code == 403
    assert existing.json()["detail"] == missing.json()["detail"]


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("PATCH", "/{id}"), ("DELETE", "/{id}")])
async def test_routes_for_administrators_are_forbidden_to_other_users(
    client: httpx2.AsyncClient, user: Account, method: str, path: str
) -> None:
    body = {"is_admin": True} if method == "PATCH" else None
    response = await client.request(method, USERS + path.format(id=user.id), json=body, headers=user.headers)

    assert response.status_code == 403


async def test_administrator_can_list_read_change_and_delete_accounts(
    client: httpx2.AsyncClient, user: Account, admin: Account
) -> None:
    listed = await client.get(USERS, params={"limit": 1}, headers=admin.headers)
    rest = await client.get(USERS, params={"cursor": listed.json()["next_cursor"]}, headers=admin.headers)
    read = await client.get(f"{USERS}/{user.id}", headers=admin.headers)
    changed = await client.patch(
        f"{USERS}/{user.id}", json={"email": "NEW@example.com"}, headers=await confirmed(client, admin)
    )
    deleted = await client.delete(f"{USERS}/{user.id}", headers=await confirmed(client, admin))

    assert [row["id"] for row in listed.json()["items"] + rest.json()["items"]] == [admin.id, user.id]
    assert read.json()["email"] == user.email
    assert changed.json()["email"] == "new@example.com"
    assert deleted.status_code == 204
    assert (await client.get(f"{USERS}/{user.id}", headers=admin.headers)).status_code == 404


async def test_a_page_of_accounts_is_read_from_an_index(connection: AsyncConnection) -> None:
    page = _list_query(after_cursor=False).statement
    explain = "EXPLAIN QUERY PLAN"
    if connection.dialect.name == "postgresql":
        explain = "EXPLAIN"
        # Otherwise PostgreSQL would scan a table this small sequentially.
        await connection.execute(text("SET LOCAL enable_seqscan = off"))

    plan = await connection.execute(text(f"{explain} {page}"), {"page_limit": 20})

    assert "ix_users_created_at_id" in str(plan.all())


async def test_an_administrators_deactivation_is_effective_at_once(
    client: httpx2.AsyncClient, user: Account, admin: Account
) -> None:
    await client.patch(f"{USERS}/{user.id}", json={"is_active": False}, headers=await confirmed(client, admin))

    assert (await client.get(ME, headers=user.headers)).status_code == 401
    assert (await request_token(client, "refresh_token", refresh_token=user.refresh_token)).status_code == 400
    await client.patch(f"{USERS}/{user.id}", json={"is_active": True}, headers=await confirmed(client, admin))
    assert (await client.get(ME, headers=user.headers)).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", ME, None),
        ("DELETE", USERS + "/{id}", None),
        ("PATCH", USERS + "/{id}", {"is_admin": False}),
        ("PATCH", USERS + "/{id}", {"is_active": False}),
    ],
)
async def test_last_active_administrator_cannot_be_removed(
    client: httpx2.AsyncClient,
    database: Database,
    admin: Account,
    method: str,
    path: str,
    body: dict[str, object] | None,
) -> None:
    other = await create_account(client, database, is_admin=True)
    await client.patch(f"{USERS}/{other.id}", json={"is_active": False}, headers=await confirmed(client, admin))

    response = await client.request(method, path.format(id=admin.id), json=body, headers=await confirmed(client, admin))

    assert response.status_code == 409
    assert response.json()["detail"] == "This is the last administrator. Appoint another one first."
    assert (await client.get(f"{USERS}/{other.id}", headers=admin.headers)).status_code == 200


async def test_two_administrators_who_delete_each_other_at_once_leave_one(live_url: str) -> None:
    settings = make_settings(live_url, database_pool_size=3)
    async with open_database(settings) as database, open_client(create_app(settings, database)) as client:
        one, other = [await create_account(client, database, is_admin=True) for _ in range(2)]
        paths = {
            f"{USERS}/{other.id}": await confirmed(client, one),
            f"{USERS}/{one.id}": await confirmed(client, other),
        }
        async with database.write() as session:
            await session.fetch_all(ACTIVE_ADMINS)
            removals = [asyncio.create_task(client.delete(path, headers=headers)) for path, headers in paths.items()]
            await wait_for_both(live_url)
        statuses = sorted([(await removal).status_code for removal in removals])

    # The second deletion fails, because it would delete the last administrator (409), or because the first deletion has
    # removed the session (401) or the confirmation (403) of the other administrator.
    assert statuses in ([204, 409], [204, 401], [204, 403])
    assert await execute_async(live_url, "SELECT count(*) FROM users") == [(1,)]


async def wait_for_both(url: str) -> None:
    """Wait until both deletions wait for the lock; return at once on SQLite, which runs one write after the other."""
    if make_url(url).get_backend_name() == "sqlite":
        return
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            if await execute_async(url, waiting) == [(2,)]:
                return
            await asyncio.sleep(0.01)


async def test_administrator_cannot_change_address_to_a_taken_one(
    client: httpx2.AsyncClient, user: Account, admin: Account
) -> None:
    response = await client.patch(
        f"{USERS}/{user.id}", json={"email": admin.email}, headers=await confirmed(client, admin)
    )

    assert response.status_code == 409
    assert (await client.get(f"{USERS}/{user.id}", headers=admin.headers)).json()["email"] == user.email


@pytest.mark.parametrize(
    "body", [{"email": None}, {"is_active": None}, {"is_admin": "perhaps"}, {"password": "x" * 12}]
)
async def test_invalid_change_by_administrator_is_refused(
    client: httpx2.AsyncClient, admin: Account, body: dict[str, object]
) -> None:
    response = await client.patch(f"{USERS}/{admin.id}", json=body, headers=admin.headers)

    assert response.status_code == 422


@pytest.mark.parametrize("address", ENCODED_ADDRESSES)
async def test_address_that_mail_software_would_decode_is_refused_by_every_route(
    client: httpx2.AsyncClient, user: Account, admin: Account, address: str
) -> None:
    answers = [
        await client.post(USERS, json={"email": address, "password": PASSWORD}),
        await client.post(
            f"{ME}/email", json={"new_email": address, "current_password": PASSWORD}, headers=user.headers
        ),
        await client.patch(f"{USERS}/{user.id}", json={"email": address}, headers=admin.headers),
        await client.post("/api/v1/auth/password/forgot", json={"email": address}),
        await client.post("/api/v1/auth/email/verification", json={"email": address}),
    ]

    assert [answer.status_code for answer in answers] == [422] * len(answers)
    assert "decode" in answers[0].json()["errors"][0]["message"]


async def test_address_is_lower_cased_only_if_mailbox_stays_the_same(client: httpx2.AsyncClient) -> None:
    created = [
        await client.post(USERS, json={"email": email, "password": PASSWORD})
        for email in ("ÄDA@example.com", "İada@example.com", "ΟΔΟΣ@example.com")
    ]

    assert [each.json()["email"] for each in created] == ["äda@example.com", "İada@example.com", "οδοσ@example.com"]
