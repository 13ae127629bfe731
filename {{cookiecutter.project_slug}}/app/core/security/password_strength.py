"""The policy for new passwords (NIST SP 800-63B §3.1.1.2): a minimum length, and a list of common passwords.

As NIST recommends, there is no rule about kinds of characters.
"""

import asyncio
import string
import sys
import unicodedata
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from app.core.errors import UnprocessableError
from app.core.project import ROOT, read_project

MIN_PASSWORD_LENGTH = 12
# Limits the cost of hashing.
MAX_PASSWORD_LENGTH = 1024
# NFKC normalization can take quadratic time: seconds for 100,000 characters.
MAX_RAW_LENGTH = 2048
MIN_REPEATED_LENGTH = 4
TAIL = string.digits + string.punctuation + string.whitespace
COMMON_PASSWORDS = ROOT / "app" / "core" / "security" / "common_passwords.txt"


class Weakness(NamedTuple):
    code: str
    detail: str


REPETITION = Weakness(
    "password-repetitive", "This password is a repetition or a sequence of characters. Choose another one."
)
COMMON = Weakness("password-common", "This password is too common. Choose another one.")
OWN_WORD = Weakness(
    "password-personal",
    "This password is your address, your name or the name of this service. Choose another one.",
)


def normalize_password(password: str) -> str:
    """Return the NFKC form, because keyboards encode the same characters differently.

    Raises ValueError for a password that is too long to be normalized.
    """
    if len(password) > MAX_RAW_LENGTH:
        raise ValueError(
            f"must have at most {MAX_RAW_LENGTH} characters, counted before the normalization of Unicode (NFKC)"
        )
    return unicodedata.normalize("NFKC", password)


async def refuse_weak_password(password: str, *own: str) -> None:
    """Raise UnprocessableError for a common, repetitive or personal password.

    A password is personal if it matches the name of this service, or one of the texts in `own`: the account's address
    and name.
    """
    # In a thread, because the first call reads a file.
    weakness = await asyncio.to_thread(find_weakness, password, *own)
    if weakness is not None:
        raise UnprocessableError(weakness.detail, code=weakness.code)


def find_weakness(password: str, *own: str) -> Weakness | None:
    folded = normalize_password(password).casefold()
    unit = _repeated_unit(folded)
    if len(unit) < MIN_REPEATED_LENGTH or _is_sequence(folded):
        return REPETITION
    candidates = {folded, unit, folded.rstrip(TAIL), unit.rstrip(TAIL)} - {""}
    if not candidates.isdisjoint(_common_passwords()):
        return COMMON
    if not {_squash(candidate) for candidate in candidates}.isdisjoint(_own_words(own)):
        return OWN_WORD
    return None


def _repeated_unit(text: str) -> str:
    return text[: (text + text).find(text, 1)]


def _is_sequence(text: str) -> bool:
    """Return whether the text is a sequence such as 1234… or abcd…, in either direction; 0 follows 9."""
    modulus = 10 if text.isdecimal() else sys.maxunicode
    steps = {(ord(after) - ord(before)) % modulus for before, after in pairwise(text)}
    return len(steps) == 1 and steps <= {1, modulus - 1}


def _own_words(own: tuple[str, ...]) -> set[str]:
    project = read_project()
    words = {project.name, project.title, *own, *(text.partition("@")[0] for text in own)}
    return {_squash(unicodedata.normalize("NFKC", word).casefold()) for word in words} - {""}


def _squash(text: str) -> str:
    return "".join(character for character in text if character.isalnum())


@cache
def _common_passwords() -> frozenset[str]:
    """Read the list at its first use: it takes 4 MB, which processes that set no password do not need."""
    lines = COMMON_PASSWORDS.read_text(encoding="ascii").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))
