import time

import pytest

from app.core.security.hashing import PasswordHasher
from tests.support.databases import make_settings, unreachable_url


@pytest.fixture
def passwords() -> PasswordHasher:
    return make_hasher()


def make_hasher(**changes: object) -> PasswordHasher:
    return PasswordHasher(make_settings(unreachable_url(), **changes))


async def test_hash_with_current_parameters_is_not_replaced(passwords: PasswordHasher) -> None:
    password_hash = await passwords.hash("correct horse")

    check = await passwords.verify("correct horse", password_hash)

    assert password_hash.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    assert check.is_correct
    assert check.new_hash is None


@pytest.mark.parametrize("stored", [None, "", "plain text", "$2b$12$abcdefghijklmnopqrstuv", "$argon2id$broken"])
async def test_missing_or_invalid_hash_never_matches(passwords: PasswordHasher, stored: str | None) -> None:
    check = await passwords.verify("correct horse", stored)

    assert not check.is_correct


async def test_an_unknown_user_costs_as_much_as_a_wrong_password() -> None:
    passwords = make_hasher(password_hash_time_cost=2, password_hash_memory_cost=19456)
    password_hash = await passwords.hash("correct horse")
    # The dummy hash for unknown users is created at its first use.
    await passwords.verify("wrong", None)

    # Measure the two cases in turns, and compare their minimum times, so that other load on the machine affects both
    # cases.
    pairs = [(await measure(passwords, password_hash), await measure(passwords, None)) for _ in range(10)]
    known, unknown = (min(side) for side in zip(*pairs, strict=True))

    assert 0.5 < unknown / known < 2


async def measure(passwords: PasswordHasher, password_hash: str | None) -> float:
    started = time.process_time()
    await passwords.verify("wrong", password_hash)
    return time.process_time() - started
