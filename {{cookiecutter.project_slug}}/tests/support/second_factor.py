"""The actions of a user with an authenticator app."""

import base64
from collections.abc import Callable

import httpx2
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from tests.support.accounts import PASSWORD, Account

PATH = "/api/v1/auth/second-factor"
NOW = 1_800_000_000
PROOF = {"current_password": PASSWORD}


def show_code(secret: str, at: float = NOW) -> str:
    """Return the code that an authenticator app displays."""
    return TOTP(base64.b32decode(secret), 6, SHA1(), 30).generate(int(at)).decode()  # noqa: S303  # RFC 6238


async def enable(client: httpx2.AsyncClient, user: Account, at: float = NOW) -> tuple[str, list[str]]:
    begun = await client.post(PATH, json=PROOF, headers=user.headers)
    assert begun.status_code == 200, begun.text
    secret: str = begun.json()["secret"]
    confirmed = await client.post(f"{PATH}/confirm", json={"code": show_code(secret, at)}, headers=user.headers)
    assert confirmed.status_code == 200, confirmed.text
    return secret, confirmed.json()["recovery_codes"]


def _in_wide_letters(code: str) -> str:
    return "".join(chr(ord(character) + 0xFEE0) for character in code)


def _in_arabic_digits(code: str) -> str:
    return code.translate({ord("0") + digit: 0x660 + digit for digit in range(10)}) if code.isdigit() else code


# Ways in which people type and copy a code.
TYPED: list[Callable[[str], str]] = [
    lambda code: f"{code[:3]} {code[3:]}",
    lambda code: f"{code[:3]}\N{NO-BREAK SPACE}{code[3:]}",
    lambda code: f"{code[:3]}-{code[3:]}",
    lambda code: f"{code[:3]}\N{MINUS SIGN}{code[3:]}",
    lambda code: f"{code} ",
    lambda code: f"\t{code}\r\n",
    lambda code: f"\N{ZERO WIDTH SPACE}{code}\N{ZERO WIDTH NO-BREAK SPACE}",
    lambda code: f"\N{LEFT-TO-RIGHT ISOLATE}{code}\N{POP DIRECTIONAL ISOLATE}",
    lambda code: " ".join(code),
    _in_wide_letters,
    _in_arabic_digits,
]
