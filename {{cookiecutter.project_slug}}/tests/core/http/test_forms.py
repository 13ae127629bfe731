"""URL-encoded forms: valid and rejected input, and the cost of parsing."""

import re
import time
import tracemalloc
from collections.abc import Callable
from urllib.parse import parse_qsl

import httpx2
import pytest
from starlette.exceptions import HTTPException

from app.core.http.forms import MAX_API_FORM_BYTES, parse_form
from app.core.http.middleware.body_limit import MAX_FORM_BYTES
from app.core.http.parsing import MAX_FIELDS, require_utf8
from tests.support.accounts import TOKEN_PATH

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
REVOKE_PATH = "/api/v1/auth/revoke"
PIECES = [
    *(b"%", b"%41", b"%4", b"%g", b"%%41", b"%25", b"%D0%B9", b"a%41", b"=", b"+", b"%=", b"=41", b"%0A", b"%\r\n"),
    *(b"a", "й".encode(), "😀".encode(), b"%F0%9F%98%80", b"_", b";", b"a%4+=", b"\x00", b"%00"),
]
LARGE = 128 * 1024
# Relative to the time of `replace_each`. The slowest content takes 1.3 times as long, and would take 8 times as long
# with Python's decoder.
MAX_TIME_FACTOR = 4

# Relative to the size of the form. The list of the parts between bare percent signs takes the most memory.
MAX_MEMORY_FACTOR = 150


def repeat(piece: bytes, size: int) -> bytes:
    return piece * (size // len(piece))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"a",
        b"a=",
        b"=a",
        b"&&a=1&&b=2&",
        b"a=1&a=2",
        b"a=b=c&%61=%3D",
        b"a+b=c+d%2B",
        b"a=%&b=%4&c=%zz&d=%%41&e=100%25%",
        b"a=%26&b=%3D&c=%41%42&d==41&e===",
        b"a=_&b=%0A&c=%0D%0A&d=x=\r\ny&e=x%\ny",
        b"a=;&b;c=d",
        "й=%D0%B9й&😀=%F0%9F%98%80".encode(),
    ],
)
def test_form_is_parsed_like_parse_qsl(body: bytes) -> None:
    assert parse_form(body) == parse_qsl(body.decode(), keep_blank_values=True)


@pytest.mark.parametrize("piece", PIECES)
def test_repeated_content_is_parsed_like_parse_qsl(piece: bytes) -> None:
    body = b"name=" + repeat(piece, 999)

    assert parse_form(body) == parse_qsl(body.decode(), keep_blank_values=True)


@pytest.mark.parametrize(
    "body", [b"a=\xff", b"a=%FF", b"\xd0=%B9", b"a=\xd0&b=\xb9", b"a=%D0&b=%B9", b"a=\xed\xa0\x80"]
)
def test_form_that_is_not_utf8_is_refused(body: bytes) -> None:
    with pytest.raises(HTTPException, match="UTF-8"):
        parse_form(body)


@pytest.mark.parametrize("body", [b"&" * MAX_FIELDS, b"a&" * MAX_FIELDS, b"a=b&" * MAX_FIELDS])
def test_too_many_fields_are_refused(body: bytes) -> None:
    with pytest.raises(HTTPException, match="at most"):
        parse_form(body)


def take_time(act: Callable[[bytes], object], body: bytes) -> float:
    """Return the minimum CPU time of several attempts, which a pause of the machine does not affect."""
    times = []
    for _ in range(7):
        started = time.process_time()
        act(body)
        times.append(time.process_time() - started)
    return min(times)


def replace_each(body: bytes) -> bytes:
    """Do work whose time is the unit of all measured times, because machines differ in speed."""
    return re.sub(rb"%(?!x)", b"%25", body)


@pytest.mark.parametrize("act", [parse_form, require_utf8], ids=["form", "query"])
@pytest.mark.parametrize("piece", PIECES)
def test_parsing_time_is_bounded_for_any_content(act: Callable[[bytes], object], piece: bytes) -> None:
    assert take_time(act, repeat(piece, LARGE)) < MAX_TIME_FACTOR * take_time(replace_each, b"%" * LARGE)


@pytest.mark.parametrize("piece", [b"a&", b"=&", b"%&", b"a=%&"])
def test_parsing_time_is_bounded_for_many_fields(piece: bytes) -> None:
    body = repeat(piece, len(piece) * (MAX_FIELDS - 1)).ljust(LARGE, b"%")

    assert take_time(parse_form, body) < MAX_TIME_FACTOR * take_time(replace_each, b"%" * LARGE)


@pytest.mark.parametrize("piece", PIECES)
def test_parsing_memory_is_bounded(piece: bytes) -> None:
    body = repeat(piece, LARGE)

    tracemalloc.start()
    try:
        parse_form(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # The memory is released at once, and only one form is parsed at a time.
    assert peak < MAX_MEMORY_FACTOR * LARGE


@pytest.mark.parametrize("piece", [b"%", b"a&", b"%41", b"a"])
@pytest.mark.parametrize("path", [TOKEN_PATH, REVOKE_PATH])
async def test_a_long_form_is_refused_before_it_is_read(client: httpx2.AsyncClient, path: str, piece: bytes) -> None:
    longest = b"grant_type=".ljust(MAX_API_FORM_BYTES, b"x")

    taken = await client.post(path, content=longest, headers=FORM)
    refused = await client.post(path, content=repeat(piece, MAX_API_FORM_BYTES + 10), headers=FORM)

    assert taken.status_code in {200, 400}
    assert refused.status_code == 413
    assert refused.headers["content-type"] == "application/problem+json"


async def test_a_form_with_many_fields_is_refused(client: httpx2.AsyncClient) -> None:
    refused = await client.post(TOKEN_PATH, content=b"a&" * MAX_FIELDS, headers=FORM)

    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_request")


async def test_oversized_form_is_refused_on_other_routes(client: httpx2.AsyncClient) -> None:
    answer = await client.post("/api/v1/users", content=b"%" * (MAX_FORM_BYTES + 1), headers=FORM)

    assert answer.status_code == 413
