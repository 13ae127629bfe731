"""The rules for new passwords, over HTTP and in separate functions."""

import asyncio
import hashlib
import io
import subprocess
import sys
import time
import unicodedata
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from uuid import UUID

import httpx2
import pytest

from app.accounts import one_time_tokens
from app.accounts.emails import Purpose
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.project import ROOT, Project
from app.core.security.breached_passwords import MAX_RESPONSE_BYTES
from app.core.security.password_strength import (
    COMMON,
    COMMON_PASSWORDS,
    OWN_WORD,
    REPETITION,
    TAIL,
    Weakness,
    find_weakness,
    normalize_password,
)
from tests.support.accounts import PASSWORD, Account, create_account, new_address, request_token
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.outgoing import Outgoing
from tests.test_cli import manage

USERS = "/api/v1/users"
EMAIL = "ada.lovelace@example.com"
NAME = "Ada Lovelace-Byron"


def widen(text: str) -> str:
    """Convert the text to the full-width characters of East Asian keyboards."""
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


@pytest.fixture(autouse=True)
def service_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "app.core.security.password_strength.read_project", lambda: Project("pet-shop-api", "1", "Pets & Friends", "")
    )


@pytest.mark.parametrize(
    ("password", "expected"),
    [
        ("1qaz2wsx3edc", COMMON),
        ("1QAZ2WSX3EDC", COMMON),
        ("password1234", COMMON),
        ("Password 2026!", COMMON),
        ("extraordinary99", COMMON),
        ("dragondragon", COMMON),
        ("dragon1dragon1", COMMON),
        (widen("password1234"), COMMON),
        ("blink182blink182", COMMON),
        ("abc123abc123", COMMON),
        ("qwertyuiop[]", COMMON),
        ("qwertyuiopasdf", COMMON),
        ("Massachusetts!", COMMON),
        ("letmein2026!?", COMMON),
        ("liverpool 1892", COMMON),
        (EMAIL, OWN_WORD),
        (EMAIL.upper(), OWN_WORD),
        (f"{EMAIL}2026!", OWN_WORD),
        ("ada.lovelace1815", OWN_WORD),
        ("AdaLovelace1815", OWN_WORD),
        ("ada lovelace byron 1", OWN_WORD),
        ("pet-shop-api-2026", OWN_WORD),
        ("PetsFriends1234", OWN_WORD),
        ("aaaaaaaaaaaa", REPETITION),
        ("abcabcabcabc", REPETITION),
        ("123456789012", REPETITION),
        ("987654321098", REPETITION),
        ("abcdefghijklm", REPETITION),
    ],
)
def test_weak_password_is_refused(password: str, expected: Weakness) -> None:
    assert find_weakness(password, EMAIL, NAME) == expected


@pytest.mark.parametrize(
    "password",
    [
        PASSWORD,
        "no rule about kinds",
        "lower case only x",
        "48710923771622310",
        "漢字仮名交じり文の合言葉です",
        "🐎🔋🧷🐎🔋🧷🐎🔋🧷🐎🔋!",
        "ada likes lovelace",
        "     spaces count     ",
    ],
)
def test_passwords_without_weakness_are_accepted(password: str) -> None:
    assert find_weakness(password, EMAIL, NAME) is None


@pytest.mark.parametrize("name", ["", " ", "-"])
def test_empty_name_does_not_cause_refusal_of_password(name: str) -> None:
    assert find_weakness("4871 0923 7716 -", "", name) is None


async def test_sign_up_and_password_change_have_the_same_rules(client: httpx2.AsyncClient, user: Account) -> None:
    signed_up = await client.post(USERS, json={"email": new_address(), "password": "password1234"})
    change = {"current_password": PASSWORD, "new_password": f"{user.email}!"}
    changed = await client.post(f"{USERS}/me/password", json=change, headers=user.headers)

    assert (signed_up.status_code, changed.status_code) == (422, 422)
    assert (signed_up.json()["code"], signed_up.json()["detail"]) == COMMON
    assert (changed.json()["code"], changed.json()["detail"]) == OWN_WORD


def test_commands_have_the_same_rules(migrated_url: str) -> None:
    result = manage(migrated_url, "users", "create-admin", EMAIL, "--password-stdin", stdin="password1234\n")

    assert result.returncode == 1
    assert COMMON.detail in result.stderr


@pytest.mark.parametrize(
    ("typed", "retyped"),
    [
        (unicodedata.normalize("NFC", "naïve façade über"), unicodedata.normalize("NFD", "naïve façade über")),
        (widen("fullwidth-words"), "fullwidth-words"),
        ("\N{LATIN SMALL LIGATURE FI}rst ligature", "first ligature"),
    ],
)
async def test_password_in_another_unicode_form_is_accepted(
    client: httpx2.AsyncClient, typed: str, retyped: str
) -> None:
    email = new_address()
    created = await client.post(USERS, json={"email": email, "password": typed})

    signed_in = await request_token(client, username=email, password=retyped)

    assert typed != retyped
    assert (created.status_code, signed_in.status_code) == (201, 200)


@pytest.mark.parametrize(
    ("password", "status"),
    [
        ("ab" + "é" * 9, 422),
        ("ab" + "e\N{COMBINING ACUTE ACCENT}" * 9, 422),
        ("ab" + "é" * 9 + "z", 201),
        ("xy" * 500 + "z" * 24, 201),
        ("xy" * 500 + "z" * 25, 422),
        # The ligature is one character, and eighteen characters after normalisation.
        ("xy\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 55, 422),
    ],
)
async def test_password_length_is_measured_after_normalisation(
    client: httpx2.AsyncClient, password: str, status: int
) -> None:
    answer = await client.post(USERS, json={"email": new_address(), "password": password})

    assert answer.status_code == status, answer.text


async def test_long_passwords_are_refused_before_they_are_normalised(client: httpx2.AsyncClient, user: Account) -> None:
    marks = "a" + "\N{COMBINING COMMA ABOVE RIGHT}\N{COMBINING GRAVE ACCENT}" * 50_000
    started = time.process_time()

    signed_in = await request_token(client, username=user.email, password=marks)
    signed_up = await client.post(USERS, json={"email": new_address(), "password": marks})

    assert (signed_in.status_code, signed_up.status_code) == (413, 422)
    # Normalising these passwords would take seconds each time. Process time leaves out other processes.
    assert time.process_time() - started < 2


def run_python(code: Sequence[str]) -> str:
    command = [sys.executable, "-c", "\n".join(code)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S603  # a command of this test, without input from outside


def test_list_of_common_passwords_is_read_at_its_first_use_and_stays_small() -> None:
    code = [
        "import app.application",
        "from app.core.security.password_strength import _common_passwords, find_weakness",
        "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096",
        "before = resident()",
        "assert _common_passwords.cache_info().currsize == 0",
        "find_weakness('correct horse battery staple')",
        "print(resident() - before)",
    ]

    assert int(run_python(code)) < 12 * 1024 * 1024


def test_common_passwords_are_normalised_sorted_and_unique() -> None:
    lines = COMMON_PASSWORDS.read_text(encoding="ascii").splitlines()
    entries = [line for line in lines if not line.startswith("#")]
    listed = set(entries)

    assert entries == sorted(listed)
    assert [entry for entry in entries if entry != normalize_password(entry).casefold() or " " in entry] == []
    # Shorter entries would refuse passwords of which they are only a small part.
    assert [entry for entry in entries if len(entry) < 4] == []
    assert [entry for entry in entries if (word := entry.rstrip(TAIL)) != entry and word in listed] == []
    assert COMMON_PASSWORDS.stat().st_size < 400_000


class TestBreachedPasswords:
    URL = "https://breached.example.com/range"
    BREACHED = "correct horse battery staple 1"
    DIGEST = hashlib.sha1(BREACHED.encode(), usedforsecurity=False).hexdigest().upper()
    RANGE = f"{URL}/{DIGEST[:5]}"

    @pytest.fixture
    async def asking(
        self, settings: Settings, database: Database, outgoing: Outgoing
    ) -> AsyncIterator[httpx2.AsyncClient]:
        """A client of a service that looks up breached passwords."""
        asking = settings.model_copy(update={"breached_passwords_url": f"{self.URL}/"})
        async with open_client(create_app(asking, database, outgoing.transport)) as client:
            yield client

    def answer(self, outgoing: Outgoing, url: str, text: str) -> None:
        # Like a response from the network, this one has a body that has not been read yet.
        outgoing.answer("GET", url, stream=httpx2.ByteStream(text.encode()))

    async def sign_up(self, client: httpx2.AsyncClient) -> httpx2.Response:
        return await client.post(USERS, json={"email": new_address(), "password": self.BREACHED})

    async def test_breached_password_is_refused_and_only_a_prefix_of_its_hash_is_sent(
        self, asking: httpx2.AsyncClient, outgoing: Outgoing
    ) -> None:
        self.answer(outgoing, self.RANGE, f"{'0' * 35}:2\r\n{self.DIGEST[5:]}:3\r\n{'F' * 35}:0")

        refused = await self.sign_up(asking)

        assert refused.status_code == 422
        assert refused.json()["code"] == "password-breached"
        (request,) = outgoing.requests
        assert (str(request.url), request.headers["add-padding"]) == (self.RANGE, "true")
        assert not request.content

    async def test_breached_password_is_refused_at_change_and_reset(
        self, asking: httpx2.AsyncClient, outgoing: Outgoing, database: Database
    ) -> None:
        digest = hashlib.sha1(PASSWORD.encode(), usedforsecurity=False).hexdigest().upper()
        self.answer(outgoing, f"{self.URL}/{digest[:5]}", "")
        self.answer(outgoing, self.RANGE, f"{self.DIGEST[5:]}:1")
        user = await create_account(asking)
        async with database.write() as session:
            code = await one_time_tokens.create_token(
                session, Purpose.RESET_PASSWORD, UUID(user.id), user.email, lifetime=timedelta(hours=1)
            )
        change = {"current_password": PASSWORD, "new_password": self.BREACHED}

        changed = await asking.post(f"{USERS}/me/password", json=change, headers=user.headers)
        body = {"token": code, "new_password": self.BREACHED}
        reset = await asking.post("/api/v1/auth/password/reset", json=body)

        assert (changed.status_code, reset.status_code) == (422, 422)
        assert len(outgoing.requests) == 3

    @pytest.mark.parametrize(
        "text", [f"{DIGEST[5:]}:0", f"{'0' * 35}:9", "", "no such format", "x:y:z", f"{DIGEST[5:]}"]
    )
    async def test_padding_and_invalid_lines_of_lookup_do_not_refuse_password(
        self, asking: httpx2.AsyncClient, outgoing: Outgoing, logs: io.StringIO, text: str
    ) -> None:
        self.answer(outgoing, self.RANGE, text)

        assert (await self.sign_up(asking)).status_code == 201
        assert "lookup failed" not in logs.getvalue()

    @pytest.mark.parametrize("failure", ["status", "redirect", "connection", "too much"])
    async def test_failed_lookup_is_logged_and_password_is_accepted(
        self, asking: httpx2.AsyncClient, outgoing: Outgoing, logs: io.StringIO, failure: str
    ) -> None:
        match failure:
            case "status":
                outgoing.answer("GET", self.RANGE, 503)
            case "redirect":
                outgoing.answer("GET", self.RANGE, 302, headers={"Location": "https://elsewhere.example.com"})
            case "connection":
                outgoing.fail("GET", self.RANGE, httpx2.ConnectError("refused"))
            case _:
                self.answer(outgoing, self.RANGE, "x" * (MAX_RESPONSE_BYTES + 1))

        assert (await self.sign_up(asking)).status_code == 201
        assert "breached password lookup failed" in logs.getvalue()
        assert self.BREACHED not in logs.getvalue()

    async def test_slow_lookup_is_abandoned_and_password_is_accepted(
        self, settings: Settings, database: Database, logs: io.StringIO, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def hang(_request: httpx2.Request) -> httpx2.Response:
            await asyncio.Event().wait()
            raise AssertionError

        monkeypatch.setattr("app.core.security.breached_passwords.TIMEOUT_SECONDS", 0.1)
        asking = settings.model_copy(update={"breached_passwords_url": self.URL})
        async with open_client(create_app(asking, database, httpx2.MockTransport(hang))) as client:
            answer = await self.sign_up(client)

        assert answer.status_code == 201
        assert "breached password lookup failed" in logs.getvalue()

    async def test_no_password_is_looked_up_without_the_setting(
        self, client: httpx2.AsyncClient, outgoing: Outgoing
    ) -> None:
        assert (await self.sign_up(client)).status_code == 201
        assert outgoing.requests == []
