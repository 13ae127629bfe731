import base64
import json
from types import SimpleNamespace
from uuid import UUID

import httpx2
import pytest
from fastapi import FastAPI

from app.accounts.dependencies import get_current_user
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.features import FEATURES
from app.startup import reset
from app.todos.feature import SAMPLES
from tests.support.accounts import Account, confirmed, create_account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import execute_async, make_settings

TODOS = "/api/v1/todos"
# The time in this cursor is in the year 0 in UTC, which Python's datetime does not support.
BEFORE_THE_CALENDAR = base64.urlsafe_b64encode(
    b'["-created_at","0001-01-01T00:00:00+14:00","01890000-0000-7000-8000-000000000000"]'
).decode()


async def create_todo(client: httpx2.AsyncClient, user: Account, **fields: object) -> dict[str, object]:
    response = await client.post(TODOS, json={"title": "Buy milk", **fields}, headers=user.headers)
    assert response.status_code == 201, response.text
    todo: dict[str, object] = response.json()
    return todo


async def test_a_created_todo_is_found_at_its_location(client: httpx2.AsyncClient, user: Account) -> None:
    created = await client.post(TODOS, json={"title": "  Buy milk "}, headers=user.headers)

    read = await client.get(created.headers["location"], headers=user.headers)

    assert created.status_code == 201
    assert read.json() == created.json()
    assert read.json()["title"] == "Buy milk"
    assert read.json()["completed"] is False
    assert read.json()["created_at"].endswith("Z")


async def test_todo_is_refused_when_account_is_deleted_during_request(
    app: FastAPI, client: httpx2.AsyncClient, user: Account
) -> None:
    await client.delete("/api/v1/users/me", headers=await confirmed(client, user))
    # Simulate a request that was authenticated before the account was deleted.
    app.dependency_overrides[get_current_user] = lambda: SimpleNamespace(id=UUID(user.id))

    response = await client.post(TODOS, json={"title": "Buy milk"}, headers=user.headers)

    assert response.status_code == 409
    assert response.json()["detail"] == "The resource was changed by another request. Reload it and try again."


async def test_patch_changes_what_is_sent_and_nothing_else(client: httpx2.AsyncClient, user: Account) -> None:
    todo = await create_todo(client, user, description="Two litres")

    response = await client.patch(f"{TODOS}/{todo['id']}", json={"completed": True}, headers=user.headers)

    assert response.status_code == 200
    assert response.json() | {"updated_at": None} == todo | {"completed": True, "updated_at": None}
    assert response.json()["updated_at"] > todo["updated_at"]


async def test_an_empty_patch_changes_nothing(client: httpx2.AsyncClient, user: Account) -> None:
    todo = await create_todo(client, user)

    response = await client.patch(f"{TODOS}/{todo['id']}", json={}, headers=user.headers)

    assert response.status_code == 200
    assert response.json() == todo


async def test_put_resets_omitted_fields_to_defaults(client: httpx2.AsyncClient, user: Account) -> None:
    todo = await create_todo(client, user, description="Two litres", completed=True)

    response = await client.put(f"{TODOS}/{todo['id']}", json={"title": "Buy bread"}, headers=user.headers)

    assert response.status_code == 200
    assert (response.json()["title"], response.json()["description"]) == ("Buy bread", "")
    assert response.json()["completed"] is False


async def test_a_deleted_todo_is_gone(client: httpx2.AsyncClient, user: Account) -> None:
    todo = await create_todo(client, user)

    deleted = await client.delete(f"{TODOS}/{todo['id']}", headers=user.headers)

    assert deleted.status_code == 204
    assert deleted.content == b""
    assert (await client.get(f"{TODOS}/{todo['id']}", headers=user.headers)).status_code == 404


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_the_todo_of_another_user_is_not_found(client: httpx2.AsyncClient, user: Account, method: str) -> None:
    stranger = await create_account(client)
    todo = await create_todo(client, user)

    body = {"title": "Mine now"} if method in {"PUT", "PATCH"} else None
    response = await client.request(method, f"{TODOS}/{todo['id']}", json=body, headers=stranger.headers)

    assert response.status_code == 404
    assert (await client.get(f"{TODOS}/{todo['id']}", headers=user.headers)).json() == todo


async def test_user_sees_only_own_todos_in_list(client: httpx2.AsyncClient, user: Account) -> None:
    stranger = await create_account(client)
    await create_todo(client, stranger)
    todo = await create_todo(client, user)

    response = await client.get(TODOS, headers=user.headers)

    assert response.json() == {"items": [todo], "next_cursor": None}


@pytest.mark.parametrize("sort", ["created_at", "-created_at"])
async def test_pages_have_every_todo_once_and_in_order(client: httpx2.AsyncClient, user: Account, sort: str) -> None:
    created = [(await create_todo(client, user, title=f"Todo {number}"))["id"] for number in range(5)]

    pages = await read_pages(client, user, sort=sort, limit=2)

    assert [len(page) for page in pages] == [2, 2, 1]
    listed = [todo["id"] for page in pages for todo in page]
    assert listed == (created if sort == "created_at" else created[::-1])


async def test_todo_added_between_pages_repeats_and_skips_no_other_todo(
    client: httpx2.AsyncClient, user: Account
) -> None:
    for number in range(3):
        await create_todo(client, user, title=f"Todo {number}")
    first = (await client.get(TODOS, params={"limit": 2}, headers=user.headers)).json()
    await create_todo(client, user, title="Added")

    second = (await client.get(TODOS, params={"limit": 2, "cursor": first["next_cursor"]}, headers=user.headers)).json()

    assert [todo["title"] for todo in first["items"] + second["items"]] == ["Todo 2", "Todo 1", "Todo 0"]


async def read_pages(client: httpx2.AsyncClient, user: Account, **params: str | int) -> list[list[dict[str, object]]]:
    pages = []
    cursor: str | None = None
    while True:
        query = params if cursor is None else {**params, "cursor": cursor}
        page = (await client.get(TODOS, params=query, headers=user.headers)).json()
        pages.append(page["items"])
        cursor = page["next_cursor"]
        if cursor is None:
            return pages


@pytest.mark.parametrize("completed", [True, False])
async def test_the_list_can_be_filtered_by_completion(
    client: httpx2.AsyncClient, user: Account, completed: bool
) -> None:
    todos = {state: await create_todo(client, user, completed=state) for state in (True, False)}

    response = await client.get(TODOS, params={"completed": completed}, headers=user.headers)

    assert response.json()["items"] == [todos[completed]]


@pytest.mark.parametrize(
    "params",
    [
        {"limit": "0"},
        {"limit": "101"},
        {"limit": "9" * 30},
        {"limit": "ten"},
        {"sort": "title"},
        {"completed": "perhaps"},
        {"cursor": "x"},
        {"cursor": "AAAA"},
        {"cursor": "\0"},
        {"cursor": "é"},
        {"cursor": "A" * 201},
        {"cursor": BEFORE_THE_CALENDAR},
    ],
)
async def test_invalid_query_is_refused(client: httpx2.AsyncClient, user: Account, params: dict[str, str]) -> None:
    response = await client.get(TODOS, params=params, headers=user.headers)

    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"


async def test_cursor_of_another_sort_is_refused(client: httpx2.AsyncClient, user: Account) -> None:
    for _ in range(2):
        await create_todo(client, user)
    page = (await client.get(TODOS, params={"limit": 1}, headers=user.headers)).json()

    response = await client.get(
        TODOS, params={"sort": "created_at", "cursor": page["next_cursor"]}, headers=user.headers
    )

    assert response.status_code == 422


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"title": ""},
        {"title": "   "},
        {"title": None},
        {"title": 1},
        {"title": "x" * 201},
        {"title": "two\nlines"},
        {"title": "NUL \0"},
        {"title": "\N{ZERO WIDTH SPACE}"},
        {"title": " \N{HANGUL FILLER}\N{RIGHT-TO-LEFT OVERRIDE}"},
        {"title": "x", "description": "NUL \0"},
        {"title": "x", "description": "x" * 10_001},
        {"title": "x", "completed": "perhaps"},
        {"title": "x", "completed": None},
        {"title": "x", "owner_id": "01890000-0000-7000-8000-000000000000"},
        [],
        "title",
        None,
    ],
)
async def test_invalid_body_is_refused(client: httpx2.AsyncClient, user: Account, body: object) -> None:
    response = await client.post(
        TODOS, content=json.dumps(body), headers={**user.headers, "Content-Type": "application/json"}
    )

    assert response.status_code == 422, response.text
    assert response.json()["errors"]
    assert (await client.get(TODOS, headers=user.headers)).json()["items"] == []


async def test_null_for_a_required_field_is_refused(client: httpx2.AsyncClient, user: Account) -> None:
    todo = await create_todo(client, user)

    response = await client.patch(f"{TODOS}/{todo['id']}", json={"title": None}, headers=user.headers)

    assert response.status_code == 422


async def test_text_of_any_script_is_kept_as_it_is(client: httpx2.AsyncClient, user: Account) -> None:
    description = "Ω 漢字 🎉 '; DROP TABLE todos; -- \\ %s {0}\n\tline two"

    todo = await create_todo(client, user, title="Ω 漢字 🎉 '\"<>&", description=description)

    assert (todo["title"], todo["description"]) == ("Ω 漢字 🎉 '\"<>&", description)


async def test_a_reset_loads_the_sample_todos(empty_url: str) -> None:
    settings = make_settings(empty_url)

    await reset(settings, FEATURES)

    rows = await execute_async(empty_url, "SELECT title, completed FROM todos ORDER BY created_at, id")
    assert rows == [(sample.title, sample.completed) for sample in SAMPLES]


async def test_an_account_stores_no_todo_beyond_its_quota(settings: Settings, database: Database) -> None:
    app = create_app(settings.model_copy(update={"max_rows_per_user": 3}), database)
    async with open_client(app) as client:
        user, other = await create_account(client), await create_account(client)
        todos = [await create_todo(client, user) for _ in range(3)]

        refused = await client.post(TODOS, json={"title": "Buy more"}, headers=user.headers)
        await create_todo(client, other)
        await client.delete(f"{TODOS}/{todos[0]['id']}", headers=user.headers)
        await create_todo(client, user)

    assert (refused.status_code, refused.json()["code"]) == (409, "quota-exceeded")
