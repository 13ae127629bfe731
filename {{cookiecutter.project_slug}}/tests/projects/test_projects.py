"""The second sample feature. Delete this file together with app/projects."""

import asyncio
import csv
import io
from typing import Any

import httpx2
import pytest

from app.core.config.settings import Settings
from app.core.db.session import Database
from tests.support.accounts import Account, confirmed, create_account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import execute_async, make_settings

PROJECTS = "/api/v1/projects"
PROJECT = {"name": "Office move", "starts_on": "2026-01-12"}
EXPENSE = {"title": "Van", "amount": "420.50", "spent_on": "2026-01-14"}
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(100_000)


async def add_project(client: httpx2.AsyncClient, owner: Account, **fields: object) -> dict[str, Any]:
    response = await client.post(PROJECTS, json={**PROJECT, **fields}, headers=owner.headers)
    assert response.status_code == 201, response.text
    project: dict[str, Any] = response.json()
    return project


async def add_expense(
    client: httpx2.AsyncClient, owner: Account, project: dict[str, Any], **fields: object
) -> dict[str, Any]:
    path = f"{PROJECTS}/{project['id']}/expenses"
    response = await client.post(path, json={**EXPENSE, **fields}, headers=owner.headers)
    assert response.status_code == 201, response.text
    expense: dict[str, Any] = response.json()
    return expense


async def upload(
    client: httpx2.AsyncClient, path: str, user: Account, content: bytes = PICTURE, media_type: str = "image/png"
) -> httpx2.Response:
    files = {"file": ("receipt.png", content, media_type)}
    return await client.put(f"{path}/receipt", files=files, headers=user.headers)


async def test_project_and_expense_are_found_at_their_locations(client: httpx2.AsyncClient, user: Account) -> None:
    project = await client.post(PROJECTS, json={**PROJECT, "budget": "1000"}, headers=user.headers)
    expenses = f"{project.headers['location']}/expenses"
    expense = await client.post(expenses, json={**EXPENSE, "category": "travel"}, headers=user.headers)

    found = [await client.get(each.headers["location"], headers=user.headers) for each in (project, expense)]

    assert [each.json() for each in found] == [project.json(), expense.json()]
    expected = {"name": "Office move", "status": "active", "starts_on": "2026-01-12", "budget": "1000.00"}
    assert {name: project.json()[name] for name in expected} == expected
    assert "owner_id" not in project.json()
    assert (expense.json()["category"], expense.json()["note"]) == ("travel", None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"title": ""},
        {"amount": "-1"},
        {"amount": "1.234"},
        {"amount": "99999999999.99"},
        {"amount": "NaN"},
        {"spent_on": "2026-02-30"},
        {"category": "bribes"},
    ],
    ids=str,
)
async def test_expense_with_a_wrong_field_is_refused(
    client: httpx2.AsyncClient, user: Account, wrong: dict[str, object]
) -> None:
    project = await add_project(client, user)

    response = await client.post(
        f"{PROJECTS}/{project['id']}/expenses", json={**EXPENSE, **wrong}, headers=user.headers
    )

    assert response.status_code == 422
    assert response.json()["errors"][0]["location"] == ["body", *wrong]


async def test_patch_changes_what_is_sent_and_nothing_else(client: httpx2.AsyncClient, user: Account) -> None:
    project = await add_project(client, user, budget="10.00")
    expense = await add_expense(client, user, project, note="By card")
    path = f"{PROJECTS}/{project['id']}"

    finished = await client.patch(path, json={"status": "finished"}, headers=user.headers)
    unlimited = await client.patch(path, json={"budget": None}, headers=user.headers)
    changed = await client.patch(f"{path}/expenses/{expense['id']}", json={"note": None}, headers=user.headers)
    unchanged = await client.patch(f"{path}/expenses/{expense['id']}", json={}, headers=user.headers)
    refused = await client.patch(path, json={"name": None}, headers=user.headers)

    assert (finished.json()["status"], finished.json()["budget"]) == ("finished", "10.00")
    assert (unlimited.json()["status"], unlimited.json()["budget"]) == ("finished", None)
    assert changed.json() | {"updated_at": None} == expense | {"note": None, "updated_at": None}
    assert unchanged.json() == changed.json()
    assert refused.status_code == 422


async def test_lists_come_in_pages(client: httpx2.AsyncClient, user: Account) -> None:
    project = await add_project(client, user)
    expenses = [await add_expense(client, user, project, title=f"Trip {number}") for number in range(3)]
    other = await add_project(client, user)

    path = f"{PROJECTS}/{project['id']}/expenses"
    first = (await client.get(path, params={"limit": 2}, headers=user.headers)).json()
    second = (await client.get(path, params={"cursor": first["next_cursor"]}, headers=user.headers)).json()
    projects = (await client.get(PROJECTS, headers=user.headers)).json()
    none = (await client.get(f"{PROJECTS}/{other['id']}/expenses", headers=user.headers)).json()

    assert first["items"] + second["items"] == expenses[::-1]
    assert [each["id"] for each in projects["items"]] == [other["id"], project["id"]]
    assert none == {"items": [], "next_cursor": None}


async def test_expense_of_another_project_is_not_found(client: httpx2.AsyncClient, user: Account) -> None:
    expense = await add_expense(client, user, await add_project(client, user))
    other = await add_project(client, user)

    response = await client.get(f"{PROJECTS}/{other['id']}/expenses/{expense['id']}", headers=user.headers)

    assert response.status_code == 404


async def test_report_adds_up_exactly(client: httpx2.AsyncClient, user: Account) -> None:
    project = await add_project(client, user, budget="1.00")
    for category, amount in (("travel", "0.10"), ("travel", "0.20"), ("material", "0.05")):
        await add_expense(client, user, project, category=category, amount=amount)

    report = await client.get(f"{PROJECTS}/{project['id']}/report", headers=user.headers)
    unlimited = await client.get(f"{PROJECTS}/{(await add_project(client, user))['id']}/report", headers=user.headers)

    assert report.json() == {
        "spent": "0.35",
        "remaining": "0.65",
        "by_category": {"travel": "0.30", "material": "0.05"},
    }
    assert unlimited.json() == {"spent": "0", "remaining": None, "by_category": {}}


async def test_export_is_csv_with_disabled_formulas(client: httpx2.AsyncClient, user: Account) -> None:
    project = await add_project(client, user)
    await add_expense(client, user, project, title='=HYPERLINK("https://example.com")', note="+1, please\nsoon")

    response = await client.get(f"{PROJECTS}/{project['id']}/export", headers=user.headers)

    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert list(csv.reader(io.StringIO(response.text))) == [
        ["spent_on", "title", "amount", "category", "note"],
        ["2026-01-14", '\'=HYPERLINK("https://example.com")', "420.50", "other", "'+1, please\nsoon"],
    ]


async def test_exports_leave_connections_to_other_requests(live_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.projects.export.BATCH_SIZE", 2)
    async with open_client(create_app(make_settings(live_url, database_pool_size=2))) as client:
        user = await create_account(client)
        project = await add_project(client, user)
        expenses = [await add_expense(client, user, project, title=f"Trip {number}") for number in range(5)]

        answers = await asyncio.gather(
            *(client.get(f"{PROJECTS}/{project['id']}/export", headers=user.headers) for _ in range(10)),
            *(client.get(PROJECTS, headers=user.headers) for _ in range(10)),
        )

    assert {answer.status_code for answer in answers} == {200}
    rows = list(csv.DictReader(io.StringIO(answers[0].text)))
    assert [row["title"] for row in rows] == [each["title"] for each in reversed(expenses)]


async def test_receipt_comes_back_as_it_was_sent(client: httpx2.AsyncClient, user: Account) -> None:
    project = await add_project(client, user)
    expense = await add_expense(client, user, project)
    path = f"{PROJECTS}/{project['id']}/expenses/{expense['id']}"

    missing = await client.get(f"{path}/receipt", headers=user.headers)
    sent = await upload(client, path, user)
    received = await client.get(f"{path}/receipt", headers=user.headers)

    assert missing.status_code == 404
    assert sent.status_code == 200, sent.text
    assert sent.json()["receipt_id"] is not None
    assert received.content == PICTURE
    assert received.headers["content-type"] == "image/png"
    assert received.headers["content-disposition"] == "attachment; filename*=UTF-8''receipt.png"


async def test_receipt_for_the_expense_of_someone_else_is_refused(client: httpx2.AsyncClient, user: Account) -> None:
    victim = await create_account(client)
    project = await add_project(client, victim)
    expense = await add_expense(client, victim, project)
    path = f"{PROJECTS}/{project['id']}/expenses/{expense['id']}"
    await upload(client, path, victim)

    assert (await upload(client, path, user, b"mine")).status_code == 404
    assert (await client.get(f"{path}/receipt", headers=user.headers)).status_code == 404
    assert (await client.get(f"{path}/receipt", headers=victim.headers)).content == PICTURE


async def test_receipt_of_another_kind_or_too_large_is_refused(client: httpx2.AsyncClient, user: Account) -> None:
    project = await add_project(client, user)
    expense = await add_expense(client, user, project)
    path = f"{PROJECTS}/{project['id']}/expenses/{expense['id']}"

    page = await upload(client, path, user, media_type="text/html")
    large = await upload(client, path, user, content=bytes(10 * 1024 * 1024 + 1))

    assert (page.status_code, large.status_code) == (415, 413)
    assert (await client.get(path, headers=user.headers)).json()["receipt_id"] is None


async def test_only_one_of_concurrently_sent_receipts_is_kept(live_url: str) -> None:
    async with open_client(create_app(make_settings(live_url, database_pool_size=8))) as client:
        user = await create_account(client)
        project = await add_project(client, user)
        path = f"{PROJECTS}/{project['id']}/expenses/{(await add_expense(client, user, project))['id']}"

        answers = await asyncio.gather(*(upload(client, path, user, bytes([number]) * 1000) for number in range(6)))
        kept = (await client.get(path, headers=user.headers)).json()["receipt_id"]

    assert {answer.status_code for answer in answers} == {200}
    rows = await execute_async(live_url, "SELECT id FROM stored_files WHERE expires_at IS NULL")
    assert [str(file_id).replace("-", "") for (file_id,) in rows] == [kept.replace("-", "")]


@pytest.mark.parametrize("what", ["receipt", "expense", "project", "account"])
async def test_receipt_that_is_no_longer_needed_is_purged(live_url: str, what: str) -> None:
    async with open_client(create_app(make_settings(live_url))) as client:
        user = await create_account(client)
        project = await add_project(client, user)
        path = f"{PROJECTS}/{project['id']}"
        expense = f"{path}/expenses/{(await add_expense(client, user, project))['id']}"
        await upload(client, expense, user)
        if what == "receipt":
            await upload(client, expense, user, b"another")
        else:
            target = {"expense": expense, "project": path, "account": "/api/v1/users/me"}[what]
            assert (await client.delete(target, headers=await confirmed(client, user))).status_code == 204

    # The purge deletes files that have expired, or have no owner.
    kept = await execute_async(
        live_url, "SELECT size FROM stored_files WHERE expires_at IS NULL AND owner_id IS NOT NULL"
    )
    assert kept == ([(len(b"another"),)] if what == "receipt" else [])
    assert await execute_async(live_url, "SELECT count(*) FROM stored_files") == [(2 if what == "receipt" else 1,)]


async def test_an_account_stores_no_row_beyond_its_quotas(settings: Settings, database: Database) -> None:
    app = create_app(settings.model_copy(update={"max_rows_per_user": 2}), database)
    async with open_client(app) as client:
        user = await create_account(client)
        projects = [await add_project(client, user) for _ in range(2)]
        expenses = [await add_expense(client, user, project) for project in projects]
        paths = [f"{PROJECTS}/{project['id']}/expenses" for project in projects]
        receipt = f"{paths[0]}/{expenses[0]['id']}"
        # The replaced receipt also counts towards the quota until it is purged.
        attached = [(await upload(client, receipt, user)).status_code for _ in range(2)]

        refused = [
            await client.post(PROJECTS, json=PROJECT, headers=user.headers),
            *[await client.post(path, json=EXPENSE, headers=user.headers) for path in paths],
            await upload(client, receipt, user),
        ]

    assert attached == [200, 200]
    assert [(each.status_code, each.json()["code"]) for each in refused] == [(409, "quota-exceeded")] * 4
