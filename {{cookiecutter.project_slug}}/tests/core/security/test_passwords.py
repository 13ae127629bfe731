"""What may be a password, over HTTP and by rule."""

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
from app.application import create_app
from app.core.config import Settings
from app.core.db.session import Database
from app.core.project import ROOT, Project
from app.core.security.breached_passwords import MAX_ANSWER_BYTES
from app.core.security.password_strength import find_weakness
from tests.accounts.test_recovery import new_address
from tests.support.accounts import PASSWORD, Account, create_account, request_token
from tests.support.clients import open_client
from tests.support.outgoing import Outgoing
from tests.test_cli import manage

USERS = "/api/v1/users"
EMAIL = "ada.lovelace@example.com"
NAME = "Ada Lovelace-Byron"


def widen(text: str) -> str:
    """Write it in the full-width characters of East Asian keyboards."""
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


@pytest.fixture(autouse=True)
def service_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "app.core.security.password_strength.read_project", lambda: Project("pet-shop-api", "1", "Pets & Friends", "")
    )


@pytest.mark.parametrize(
    ("password", "words"),
    [
        ("1qaz2wsx3edc", "try first"),
        ("1QAZ2WSX3EDC", "try first"),
        ("password1234", "try first"),
        ("Password 2026!", "try first"),
        ("extraordinary99", "try first"),
        ("dragondragon", "try first"),
        ("dragon1dragon1", "try first"),
        (widen("password1234"), "try first"),
        (EMAIL, "your address"),
        (EMAIL.upper(), "your address"),
        (f"{EMAIL}2026!", "your address"),
        ("ada.lovelace1815", "your address"),
        ("AdaLovelace1815", "your address"),
        ("ada lovelace byron 1", "your address"),
        ("pet-shop-api-2026", "your address"),
        ("PetsFriends1234", "your address"),
        ("aaaaaaaaaaaa", "repetition"),
        ("abcabcabcabc", "repetition"),
        ("123456789012", "repetition"),
        ("987654321098", "repetition"),
        ("abcdefghijklm", "repetition"),
    ],
)
def test_what_is_guessed_first_is_refused(password: str, words: str) -> None:
    weakness = find_weakness(password, EMAIL, NAME)

    assert weakness is not None
    assert words in weakness


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
def test_anything_else_is_taken(password: str) -> None:
    assert find_weakness(password, EMAIL, NAME) is None


@pytest.mark.parametrize("name", ["", " ", "-"])
def test_an_empty_name_forbids_nothing(name: str) -> None:
    assert find_weakness("4871 0923 7716 -", "", name) is None


async def test_every_way_to_set_a_password_has_the_same_rules(client: httpx2.AsyncClient, user: Account) -> None:
    signed_up = await client.post(USERS, json={"email": new_address(), "password": "password1234"})
    change = {"current_password": PASSWORD, "new_password": f"{user.email}!"}
    changed = await client.post(f"{USERS}/me/password", json=change, headers=user.headers)

    assert (signed_up.status_code, changed.status_code) == (422, 422)
    assert "attackers try first" in signed_up.json()["detail"]
    assert "your address" in changed.json()["detail"]


def test_operators_are_bound_by_them_too(migrated_url: str) -> None:
    result = manage(migrated_url, "users", "create-admin", EMAIL, "--password-stdin", stdin="password1234\n")

    assert result.returncode == 1
    assert "attackers try first" in result.stderr


@pytest.mark.parametrize(
    ("typed", "retyped"),
    [
        (unicodedata.normalize("NFC", "naïve façade über"), unicodedata.normalize("NFD", "naïve façade über")),
        (widen("fullwidth-words"), "fullwidth-words"),
        ("\N{LATIN SMALL LIGATURE FI}rst ligature", "first ligature"),
    ],
)
async def test_the_same_password_may_be_typed_on_another_keyboard(
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
        # One character, which is eighteen once normalised.
        ("xy\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 55, 422),
    ],
)
async def test_what_counts_is_the_length_once_normalised(
    client: httpx2.AsyncClient, password: str, status: int
) -> None:
    answer = await client.post(USERS, json={"email": new_address(), "password": password})

    assert answer.status_code == status, answer.text


async def test_megabytes_of_combining_characters_cost_nothing(client: httpx2.AsyncClient, user: Account) -> None:
    marks = "a" + "\N{COMBINING COMMA ABOVE RIGHT}\N{COMBINING GRAVE ACCENT}" * 50_000
    started = time.process_time()

    signed_in = await request_token(client, username=user.email, password=marks)
    signed_up = await client.post(USERS, json={"email": new_address(), "password": marks})

    assert (signed_in.status_code, signed_up.status_code) == (413, 422)
    # To normalise it takes seconds each time; what else the machine does meanwhile does not count.
    assert time.process_time() - started < 2


def run_python(code: Sequence[str]) -> str:
    command = [sys.executable, "-c", "\n".join(code)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout  # noqa: S603  # ours


def test_the_list_is_loaded_when_it_is_needed_and_stays_small() -> None:
    resident = "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096"
    code = [
        "import sys, app.application",
        "from app.core.security.password_strength import _common, find_weakness",
        resident,
        "before = resident()",
        "assert not any('zxcvbn' in name or name == 'frequency_lists' for name in sys.modules)",
        "assert _common.cache_info().currsize == 0",
        "find_weakness('correct horse battery staple')",
        "print(resident() - before)",
    ]

    assert int(run_python(code)) < 16 * 1024 * 1024


class TestBreachedPasswords:
    URL = "https://breached.example.com/range"
    BREACHED = "correct horse battery staple 1"
    DIGEST = hashlib.sha1(BREACHED.encode(), usedforsecurity=False).hexdigest().upper()
    RANGE = f"{URL}/{DIGEST[:5]}"

    @pytest.fixture
    async def asking(
        self, settings: Settings, database: Database, outgoing: Outgoing
    ) -> AsyncIterator[httpx2.AsyncClient]:
        """Where breached passwords are looked up."""
        asking = settings.model_copy(update={"breached_passwords_url": f"{self.URL}/"})
        async with open_client(create_app(asking, database, outgoing.transport)) as client:
            yield client

    def answer(self, outgoing: Outgoing, url: str, text: str) -> None:
        # A body that has not been read yet, as from a network.
        outgoing.answer("GET", url, stream=httpx2.ByteStream(text.encode()))

    async def sign_up(self, client: httpx2.AsyncClient) -> httpx2.Response:
        return await client.post(USERS, json={"email": new_address(), "password": self.BREACHED})

    async def test_what_is_known_from_a_breach_is_refused_and_not_told_to_anybody(
        self, asking: httpx2.AsyncClient, outgoing: Outgoing
    ) -> None:
        self.answer(outgoing, self.RANGE, f"{'0' * 35}:2\r\n{self.DIGEST[5:]}:3\r\n{'F' * 35}:0")

        refused = await self.sign_up(asking)

        assert refused.status_code == 422
        assert "breach" in refused.json()["detail"]
        (request,) = outgoing.requests
        assert (str(request.url), request.headers["add-padding"]) == (self.RANGE, "true")
        assert not request.content

    async def test_every_way_to_set_a_password_asks(
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
    async def test_what_pads_an_answer_or_makes_no_sense_forbids_nothing(
        self, asking: httpx2.AsyncClient, outgoing: Outgoing, logs: io.StringIO, text: str
    ) -> None:
        self.answer(outgoing, self.RANGE, text)

        assert (await self.sign_up(asking)).status_code == 201
        assert "cannot be looked up" not in logs.getvalue()

    @pytest.mark.parametrize("failure", ["status", "redirect", "connection", "too much"])
    async def test_what_cannot_be_looked_up_is_taken_and_logged(
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
                self.answer(outgoing, self.RANGE, "x" * (MAX_ANSWER_BYTES + 1))

        assert (await self.sign_up(asking)).status_code == 201
        assert "breached passwords cannot be looked up" in logs.getvalue()
        assert self.BREACHED not in logs.getvalue()

    async def test_a_slow_answer_is_not_waited_for(
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
        assert "breached passwords cannot be looked up" in logs.getvalue()

    async def test_nobody_is_asked_unless_an_operator_says_so(
        self, client: httpx2.AsyncClient, outgoing: Outgoing
    ) -> None:
        assert (await self.sign_up(client)).status_code == 201
        assert outgoing.requests == []
