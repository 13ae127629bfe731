from dataclasses import dataclass, field
from uuid import uuid4

import httpx2
from sqlalchemy import update

from app.accounts.models import User
from app.core.db.session import Database

PASSWORD = "correct horse battery staple"
TOKEN_PATH = "/api/v1/auth/token"
CONFIRMATION_PATH = "/api/v1/auth/confirmation"


@dataclass
class Account:
    id: str
    email: str
    access_token: str
    refresh_token: str
    password: str = PASSWORD
    headers: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.headers = {"Authorization": f"Bearer {self.access_token}"}


async def create_account(
    client: httpx2.AsyncClient, database: Database | None = None, *, is_admin: bool = False
) -> Account:
    """Sign up and sign in over HTTP; the rights of an administrator are set in the database directly."""
    email = f"{uuid4().hex}@example.com"
    response = await client.post("/api/v1/users", json={"email": email, "password": PASSWORD})
    assert response.status_code == 201, response.text
    if is_admin:
        assert database is not None
        async with database.write() as session:
            await session.execute(update(User).where(User.email == email).values(is_admin=True))
    return await sign_in(client, response.json()["id"], email)


async def sign_in(client: httpx2.AsyncClient, user_id: str, email: str, password: str = PASSWORD) -> Account:
    response = await request_token(client, username=email, password=password)
    assert response.status_code == 200, response.text
    tokens = response.json()
    return Account(user_id, email, tokens["access_token"], tokens["refresh_token"], password)


async def confirmed(client: httpx2.AsyncClient, account: Account, otp: str | None = None) -> dict[str, str]:
    """Return headers of a request that needs a confirmation: the access token and X-Confirmation."""
    body = {"current_password": account.password, "otp": otp}
    response = await client.post(CONFIRMATION_PATH, json=body, headers=account.headers)
    assert response.status_code == 201, response.text
    return {**account.headers, "X-Confirmation": response.json()["confirmation"]}


async def request_token(client: httpx2.AsyncClient, grant_type: str = "password", **form: str) -> httpx2.Response:
    return await client.post(TOKEN_PATH, data={"grant_type": grant_type, **form})


def new_address() -> str:
    return f"{uuid4().hex}@example.com"
