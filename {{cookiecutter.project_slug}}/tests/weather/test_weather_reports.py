import json

import httpx2
import pytest

from tests.support.accounts import Account, confirmed, create_account

REPORTS = "/api/v1/weather/reports"
REPORT = {"city": "London", "country": "GB", "temperature": 7.5}


async def create_report(client: httpx2.AsyncClient, user: Account, **fields: object) -> dict[str, object]:
    response = await client.post(REPORTS, json={**REPORT, **fields}, headers=user.headers)
    assert response.status_code == 201, response.text
    report: dict[str, object] = response.json()
    return report


async def test_report_is_shown_to_all_users_without_its_author(client: httpx2.AsyncClient, user: Account) -> None:
    reader = await create_account(client)

    report = await create_report(client, user, city=" London ", country="gb", description="Fog,\nall day")
    listed = (await client.get(REPORTS, headers=reader.headers)).json()

    assert listed == {"items": [report], "next_cursor": None}
    assert set(report) == {"id", "city", "country", "temperature", "description", "created_at", "updated_at"}
    assert (report["city"], report["country"], report["temperature"]) == ("London", "GB", 7.5)


async def test_pages_contain_each_report_once_newest_first(client: httpx2.AsyncClient, user: Account) -> None:
    created = [(await create_report(client, user, temperature=number))["id"] for number in range(5)]

    listed, cursor = [], None
    for _ in range(3):
        params = {"limit": 2} if cursor is None else {"limit": 2, "cursor": cursor}
        page = (await client.get(REPORTS, params=params, headers=user.headers)).json()
        listed += [report["id"] for report in page["items"]]
        cursor = page["next_cursor"]

    assert listed == created[::-1]
    assert cursor is None


async def test_report_added_between_pages_repeats_and_skips_no_other_report(
    client: httpx2.AsyncClient, user: Account
) -> None:
    for number in range(3):
        await create_report(client, user, temperature=number)
    first = (await client.get(REPORTS, params={"limit": 2}, headers=user.headers)).json()
    await create_report(client, user, temperature=99)

    params: dict[str, str | int] = {"limit": 2, "cursor": first["next_cursor"]}
    second = (await client.get(REPORTS, params=params, headers=user.headers)).json()

    assert [report["temperature"] for report in first["items"] + second["items"]] == [2, 1, 0]


async def test_reports_are_filtered_by_city(client: httpx2.AsyncClient, user: Account) -> None:
    reports = [await create_report(client, user, city=city) for city in ("London", "Paris", "London")]

    params: dict[str, str | int] = {"city": "London", "limit": 1}
    first = (await client.get(REPORTS, params=params, headers=user.headers)).json()
    rest = await client.get(REPORTS, params={**params, "cursor": first["next_cursor"]}, headers=user.headers)

    assert first["items"] == [reports[2]]
    assert rest.json() == {"items": [reports[0]], "next_cursor": None}


@pytest.mark.parametrize("params", [{"limit": "0"}, {"limit": "101"}, {"cursor": "x"}, {"city": ""}, {"city": "a\nb"}])
async def test_invalid_query_is_refused(client: httpx2.AsyncClient, user: Account, params: dict[str, str]) -> None:
    response = await client.get(REPORTS, params=params, headers=user.headers)

    assert response.status_code == 422


@pytest.mark.parametrize(
    "changes",
    [
        {"city": ""},
        {"city": "two\nlines"},
        {"city": "x" * 201},
        {"city": None},
        {"country": "GBR"},
        {"country": "ß"},
        {"temperature": 101},
        {"temperature": -101},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": None},
        {"temperature": "warm"},
        {"description": "NUL \0"},
        {"description": "x" * 10_001},
        {"owner_id": "01890000-0000-7000-8000-000000000000"},
    ],
)
async def test_invalid_report_is_refused(client: httpx2.AsyncClient, user: Account, changes: dict[str, object]) -> None:
    headers = {**user.headers, "Content-Type": "application/json"}
    response = await client.post(REPORTS, content=json.dumps({**REPORT, **changes}), headers=headers)

    assert response.status_code == 422, response.text
    assert (await client.get(REPORTS, headers=user.headers)).json()["items"] == []


async def test_reports_are_deleted_with_their_account(client: httpx2.AsyncClient, user: Account) -> None:
    reader = await create_account(client)
    await create_report(client, user)

    deleted = await client.delete("/api/v1/users/me", headers=await confirmed(client, user))

    assert deleted.status_code == 204, deleted.text
    assert (await client.get(REPORTS, headers=reader.headers)).json()["items"] == []
