import asyncio

import httpx2
import pytest

from app.accounts.scopes import format_scope, list_allowed
from tests.support.accounts import PASSWORD, Account, confirmed, create_account, request_token, sign_in
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import execute_async, make_settings

ME = "/api/v1/users/me"
USERS = "/api/v1/users"


async def request_scope(client: httpx2.AsyncClient, user: Account, scope: str) -> httpx2.Response:
    return await request_token(client, username=user.email, password=PASSWORD, scope=scope)


def bearer(response: httpx2.Response) -> dict[str, str]:
    return {"Authorization": f"Bearer {response.json()['access_token']}"}


async def test_request_without_scope_grants_all_allowed_scopes(
    client: httpx2.AsyncClient, user: Account, admin: Account
) -> None:
    ordinary = await request_scope(client, user, "")
    administrator = await request_scope(client, admin, " ")

    assert ordinary.json()["scope"] == format_scope(list_allowed(is_admin=False))
    assert administrator.json()["scope"] == format_scope(list_allowed(is_admin=True))


@pytest.mark.parametrize(
    ("scope", "own", "all_users"), [("account", 200, 403), ("admin", 403, 200), ("admin  account", 200, 200)]
)
async def test_token_works_only_for_its_scopes(
    client: httpx2.AsyncClient, admin: Account, scope: str, own: int, all_users: int
) -> None:
    response = await request_scope(client, admin, scope)

    assert set(response.json()["scope"].split()) == set(scope.split())
    assert (await client.get(ME, headers=bearer(response))).status_code == own
    assert (await client.get(USERS, headers=bearer(response))).status_code == all_users


async def test_refusal_names_the_missing_scope(client: httpx2.AsyncClient, admin: Account) -> None:
    response = await request_scope(client, admin, "account")

    refused = await client.get(USERS, headers=bearer(response))

    assert refused.headers["www-authenticate"] == 'Bearer error="insufficient_scope", scope="admin"'
    assert refused.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("scope", ["admin", "account admin", "everything", "ACCOUNT", "account\0"])
async def test_unknown_or_forbidden_scope_is_refused(client: httpx2.AsyncClient, user: Account, scope: str) -> None:
    response = await request_scope(client, user, scope)

    assert response.status_code == 400
    assert response.json()["error"] == "invalid_scope"


async def test_refresh_can_narrow_but_not_widen_the_scope(client: httpx2.AsyncClient, admin: Account) -> None:
    granted = await request_scope(client, admin, "account admin")

    less = await request_token(client, "refresh_token", refresh_token=granted.json()["refresh_token"], scope="account")
    # RFC 6749 §6: a narrower scope applies to one access token; the session keeps the scope of the sign-in.
    again = await request_token(client, "refresh_token", refresh_token=less.json()["refresh_token"])
    narrow = await request_scope(client, admin, "account")
    more = await request_token(client, "refresh_token", refresh_token=narrow.json()["refresh_token"], scope="admin")

    assert less.json()["scope"] == "account"
    assert (await client.get(USERS, headers=bearer(less))).status_code == 403
    assert again.json()["scope"] == "account admin"
    assert more.json()["error"] == "invalid_scope"


async def test_demoted_administrator_loses_admin_rights_at_once(
    client: httpx2.AsyncClient, admin: Account, user: Account
) -> None:
    headers = admin.headers
    await client.patch(f"{USERS}/{user.id}", json={"is_admin": True}, headers=await confirmed(client, admin))
    promoted = await sign_in(client, user.id, user.email)

    demoted = await client.patch(
        f"{USERS}/{admin.id}", json={"is_admin": False}, headers=await confirmed(client, promoted)
    )
    refreshed = await request_token(client, "refresh_token", refresh_token=admin.refresh_token)

    assert demoted.status_code == 200
    assert (await client.get(USERS, headers=headers)).status_code == 403
    assert (await client.get(USERS, headers=bearer(refreshed))).status_code == 403


@pytest.mark.parametrize("change", [{"is_admin": False}, {"is_active": False}, None], ids=str)
async def test_the_last_administrator_cannot_be_removed(
    client: httpx2.AsyncClient, admin: Account, change: dict[str, bool] | None
) -> None:
    target = f"{USERS}/{admin.id}"
    if change is None:
        answers = [await client.delete(path, headers=await confirmed(client, admin)) for path in (target, ME)]
    else:
        answers = [await client.patch(target, json=change, headers=await confirmed(client, admin))]

    assert {answer.status_code for answer in answers} == {409}
    assert (await client.get(USERS, headers=admin.headers)).status_code == 200


async def test_two_administrators_who_remove_each_other_leave_one(live_url: str) -> None:
    async with open_client(create_app(make_settings(live_url, database_pool_size=4))) as client:
        one, other = await create_account(client), await create_account(client)
        await execute_async(live_url, "UPDATE users SET is_admin = TRUE")
        one, other = await sign_in(client, one.id, one.email), await sign_in(client, other.id, other.email)

        headers = [await confirmed(client, each) for each in (one, other)]

        answers = await asyncio.gather(
            client.delete(f"{USERS}/{other.id}", headers=headers[0]),
            client.patch(f"{USERS}/{one.id}", json={"is_active": False}, headers=headers[1]),
        )
        left = await execute_async(live_url, "SELECT email FROM users WHERE is_admin AND is_active")

    assert sorted(answer.status_code for answer in answers)[0] in (200, 204)
    assert len(left) == 1


async def test_openapi_shows_which_scope_a_route_needs(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()

    def scopes(path: str, method: str) -> list[object]:
        return [scope for need in document["paths"][path][method]["security"] for scope in need.values()]

    assert scopes(ME, "get") == [["account"]]
    assert scopes("/api/v1/users", "get") == [["admin"]]
    assert scopes("/api/v1/audit-events", "get") == [["admin"]]
