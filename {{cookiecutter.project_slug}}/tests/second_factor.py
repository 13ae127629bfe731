"""What a person with an authenticator does."""

import base64

import httpx2
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from tests.accounts import PASSWORD, Account

PATH = "/api/v1/auth/second-factor"
NOW = 1_800_000_000
PROOF = {"current_password": PASSWORD}


def show_code(secret: str, at: int = NOW) -> str:
    """What an authenticator shows."""
    return TOTP(base64.b32decode(secret), 6, SHA1(), 30).generate(at).decode()  # noqa: S303  # RFC 6238


async def enable(client: httpx2.AsyncClient, user: Account, at: int = NOW) -> tuple[str, list[str]]:
    begun = await client.post(PATH, json=PROOF, headers=user.headers)
    assert begun.status_code == 200, begun.text
    secret: str = begun.json()["secret"]
    confirmed = await client.post(f"{PATH}/confirm", json={"code": show_code(secret, at)}, headers=user.headers)
    assert confirmed.status_code == 200, confirmed.text
    return secret, confirmed.json()["recovery_codes"]
