"""Changes that grant or remove access require a confirmation: the password, and a code of the second factor."""

import httpx2
import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncConnection

from app.accounts.models import OneTimeToken
from app.core.db.models import utc_now
from app.core.db.session import Database
from tests.support.accounts import CONFIRMATION_PATH, PASSWORD, Account, confirmed, create_account, sign_in
from tests.support.clock import Clock
from tests.support.second_factor import enable, show_code

ME = "/api/v1/users/me"
USERS = "/api/v1/users"
SESSIONS = "/api/v1/auth/sessions"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", ME, None),
        ("DELETE", USERS + "/{other}", None),
        ("PATCH", USERS + "/{own}", {"email": "attacker@example.com"}),
        ("PATCH", USERS + "/{other}", {"email": "attacker@example.com"}),
        ("PATCH", USERS + "/{other}", {"is_admin": True}),
        ("PATCH", USERS + "/{other}", {"is_active": False}),
        ("DELETE", SESSIONS + "/{session}", None),
    ],
)
async def test_sensitive_change_without_confirmation_is_refused(
    client: httpx2.AsyncClient,
    database: Database,
    user: Account,
    admin: Account,
    method: str,
    path: str,
    body: dict[str, object] | None,
) -> None:
    # A second administrator, because removing the last administrator would be refused even with a confirmation.
    await create_account(client, database, is_admin=True)
    owner = await sign_in(client, admin.id, admin.email)
    sessions = (await client.get(SESSIONS, headers=admin.headers)).json()
    (session,) = (each["id"] for each in sessions if not each["is_current"])
    target = path.format(own=admin.id, other=user.id, session=session)
    before = (await client.get(f"{USERS}/{user.id}", headers=owner.headers)).json()

    copied = await client.request(method, target, json=body, headers=admin.headers)
    invented = await client.request(method, target, json=body, headers={**admin.headers, "X-Confirmation": "x" * 43})

    assert (copied.status_code, invented.status_code) == (403, 403)
    assert "POST /auth/confirmation" in copied.json()["detail"]
    assert (await client.get(f"{USERS}/{user.id}", headers=owner.headers)).json() == before
    confirmed_answer = await client.request(method, target, json=body, headers=await confirmed(client, admin))
    assert confirmed_answer.is_success, confirmed_answer.text


async def test_renaming_user_and_ending_own_session_need_no_confirmation(
    client: httpx2.AsyncClient, user: Account, admin: Account
) -> None:
    unchanged = {"name": "Ada", "email": user.email, "is_admin": False, "is_active": True}
    renamed = await client.patch(f"{USERS}/{user.id}", json=unchanged, headers=admin.headers)
    (own,) = (await client.get(SESSIONS, headers=user.headers)).json()
    ended = await client.delete(f"{SESSIONS}/{own['id']}", headers=user.headers)

    assert (renamed.status_code, renamed.json()["name"]) == (200, "Ada")
    assert ended.status_code == 204


async def test_a_confirmation_works_once_and_only_in_its_own_session(
    client: httpx2.AsyncClient, admin: Account
) -> None:
    other = await sign_in(client, admin.id, admin.email)
    victims = [await create_account(client) for _ in range(2)]
    headers = await confirmed(client, admin)

    elsewhere = await client.delete(f"{USERS}/{victims[0].id}", headers={**headers, **other.headers})
    first = await client.delete(f"{USERS}/{victims[0].id}", headers=headers)
    second = await client.delete(f"{USERS}/{victims[1].id}", headers=headers)

    assert [answer.status_code for answer in (elsewhere, first, second)] == [403, 204, 403]


async def test_expired_confirmation_is_refused(
    client: httpx2.AsyncClient, user: Account, connection: AsyncConnection
) -> None:
    headers = await confirmed(client, user)
    await connection.execute(update(OneTimeToken).values(expires_at=utc_now()))

    assert (await client.delete(ME, headers=headers)).status_code == 403


async def test_confirmation_requires_the_second_factor(client: httpx2.AsyncClient, user: Account, clock: Clock) -> None:
    secret, _ = await enable(client, user)
    clock.now += 30
    proofs = [{"current_password": PASSWORD}, {"current_password": PASSWORD, "otp": "000000"}]

    refused = [await client.post(CONFIRMATION_PATH, json=proof, headers=user.headers) for proof in proofs]
    headers = await confirmed(client, user, show_code(secret, clock.now))

    assert [answer.status_code for answer in refused] == [422, 422]
    assert (await client.delete(ME, headers=headers)).status_code == 204


async def test_openapi_documents_the_confirmation_header(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()

    for path, method in ((ME, "delete"), (USERS + "/{user_id}", "patch"), (SESSIONS + "/{session_id}", "delete")):
        headers = [each["name"] for each in document["paths"][path][method]["parameters"] if each["in"] == "header"]
        assert headers == ["X-Confirmation"]
