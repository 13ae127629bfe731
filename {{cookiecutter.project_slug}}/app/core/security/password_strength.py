"""What makes a password weak (NIST SP 800-63B §3.1.1.2): a list of common ones, and no rule about characters."""

import asyncio
import importlib.util
import string
import sys
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

from app.core.errors import UnprocessableError
from app.core.project import read_project

MIN_PASSWORD_LENGTH = 12
# Longer ones only serve to make the server hash megabytes.
MAX_PASSWORD_LENGTH = 1024
# To normalise takes up to the square of the length: seconds for 100,000 characters.
MAX_RAW_LENGTH = 2048
# Of words; shorter ones are no more than a part of a password, unless they are common passwords themselves.
MIN_WORD_LENGTH = 8
MIN_REPEATED_LENGTH = 4
TAIL = string.digits + string.punctuation + string.whitespace


def normalize_password(password: str) -> str:
    """Keyboards write the same characters differently. Raises ValueError for one that is too long to be normalised."""
    if len(password) > MAX_RAW_LENGTH:
        raise ValueError(f"must have at most {MAX_RAW_LENGTH} characters before it is normalised")
    return unicodedata.normalize("NFKC", password)


async def refuse_weak_password(password: str, *own: str) -> None:
    """Raises UnprocessableError for a password that is common, or is one of the account's own data."""
    weakness = await asyncio.to_thread(find_weakness, password, *own)
    if weakness is not None:
        raise UnprocessableError(f"The password {weakness}.")


def find_weakness(password: str, *own: str) -> str | None:
    folded = normalize_password(password).casefold()
    unit = _repeated_unit(folded)
    if len(unit) < MIN_REPEATED_LENGTH or _is_sequence(folded):
        return "must not be a repetition or a sequence"
    candidates = {folded, unit, folded.rstrip(TAIL), unit.rstrip(TAIL)} - {""}
    if not candidates.isdisjoint(_common()):
        return "must not be one that attackers try first, nor one with digits appended"
    if not {_squash(candidate) for candidate in candidates}.isdisjoint(_own_words(own)):
        return "must not be your address, your name or the name of this service"
    return None


def _repeated_unit(text: str) -> str:
    return text[: (text + text).find(text, 1)]


def _is_sequence(text: str) -> bool:
    """1234..., abcd..., and backwards; after 9 comes 0."""
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
def _common() -> frozenset[str]:
    """Loaded when it is first needed. Only the lists: the whole of zxcvbn would stay in memory three times over."""
    package = importlib.util.find_spec("zxcvbn")
    assert package is not None and package.origin is not None  # noqa: S101, PT018  # for the type checker; a dependency
    file = Path(package.origin).with_name("frequency_lists.py")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018  # for the type checker; a Python file
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return frozenset(
        entry
        for name, entries in module.FREQUENCY_LISTS.items()
        for entry in entries
        if name == "passwords" or len(entry) >= MIN_WORD_LENGTH
    )
