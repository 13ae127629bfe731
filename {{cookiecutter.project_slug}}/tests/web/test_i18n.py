"""Texts of the pages in several languages."""

import io
import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.core.config.settings import Settings
from app.core.db.session import Database
from app.web.i18n import LOCALES, Translations
from app.web.settings import WebSettings
from tests.support.applications import create_app
from tests.support.clients import open_client


async def test_every_referenced_text_exists() -> None:
    sources = [*LOCALES.parent.rglob("*.html"), *LOCALES.parent.rglob("*.py")]
    code = "".join(source.read_text(encoding="utf-8") for source in sources)
    texts = Translations(LOCALES / "en.toml")

    named = set(re.findall(r"""\bt\(["']([a-z_.]+)["']|["'](flash\.[a-z_]+)["']|title=["']([a-z_.]+)["']""", code))

    keys = {next(filter(None, groups)) for groups in named}
    assert len(keys) > 20
    for key in keys:
        assert texts(key, name="Ada", status=404)


def test_language_without_a_file_is_refused_at_start() -> None:
    with pytest.raises(ValidationError, match="must be the name of a file in app/web/locales"):
        WebSettings(_env_file=None, web_language="xx")


@pytest.mark.parametrize("locale", sorted(LOCALES.iterdir()), ids=lambda path: path.stem)
def test_every_language_has_every_text(locale: Path) -> None:
    assert Translations(locale).gaps == []


SIGN_UP = '[sign_up]\ntitle = "Konto anlegen"\n'
BROKEN_TEXTS = {
    "empty file": ("", "sign_up.title is missing"),
    "not TOML": ("[sign_up\ntitle =", "the file cannot be read (Expected"),
    "not UTF-8": (b'[sign_up]\ntitle = "\xff"', "the file cannot be read (must be UTF-8)"),
    "an empty text": ('[sign_up]\ntitle = " "', "sign_up.title is missing"),
    "a number": ("[sign_up]\ntitle = 3", "sign_up.title is missing"),
    "a table": ('[sign_up.title]\na = "b"', "sign_up.title is missing"),
    "a text outside a table": ('sign_up = "x"', "sign_up is not a text of the pages"),
    "an unknown text": (SIGN_UP + 'titel = "x"', "sign_up.titel is not a text of the pages"),
    "another placeholder": ('[home]\nhello = "Hallo, {nam}."', "home.hello must have the placeholders"),
    "a number as placeholder": ('[home]\nhello = "Hallo, {}."', "home.hello must have the placeholders"),
    "an attribute": ('[home]\nhello = "Hallo, {name.x}."', "home.hello must have the placeholders"),
    "a format": ('[home]\nhello = "Hallo, {name:d}."', "home.hello must have the placeholders"),
    "no placeholder": ('[home]\nhello = "Hallo."', "home.hello must have the placeholders"),
    "an unclosed brace": ('[home]\nhello = "Hallo, {name"', "home.hello must have the placeholders"),
    "an extra placeholder": (SIGN_UP + 'sign_in_instead = "{name}"', "sign_up.sign_in_instead must have the placeh"),
    "errors not a table": ('errors = "x"', "errors must be a table"),
    "an error not a text": ("[errors]\nincorrect-code = 3", "errors.incorrect-code is missing"),
    "an error with an attribute": (
        '[errors]\nbusy = "{detail.x}"',
        "errors.busy must have placeholders such as {detail}",
    ),
    "an error with a format": ('[errors]\nbusy = "{detail:d}"', "errors.busy must have placeholders"),
    "an error with a number": ('[errors]\nbusy = "{0}"', "errors.busy must have placeholders"),
    "an error with an unclosed brace": ('[errors]\nbusy = "{"', "errors.busy must have placeholders"),
}


@pytest.mark.parametrize(("content", "gap"), BROKEN_TEXTS.values(), ids=BROKEN_TEXTS)
async def test_missing_texts_fall_back_to_english(
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    logs: io.StringIO,
    content: str | bytes,
    gap: str,
) -> None:
    (tmp_path / "xx.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setattr("app.web.settings.LOCALES", tmp_path)
    spoken = WebSettings(_env_file=None, web_language="xx")
    english = Translations(LOCALES / "en.toml")

    async with open_client(create_app(settings.join(spoken), database)) as client:
        page = await client.get("/sign-up")

    (note,) = spoken.notes
    (warning,) = [line for line in logs.getvalue().splitlines() if "shown in English" in line]
    assert "app/web/locales/xx.toml" in note
    assert gap in note
    assert json.loads(warning)["level"] == "warning"
    assert page.status_code == 200
    assert english("sign_up.sign_in_instead") in page.text
    assert '<html lang="xx"' in page.text
    assert Translations(spoken.locale)("home.hello", name="Ada") == "Hello, Ada."


def test_existing_texts_are_used_although_others_are_missing(tmp_path: Path) -> None:
    file = tmp_path / "xx.toml"
    file.write_text(SIGN_UP + '[home]\nhello = "{name}, hallo."\n', encoding="utf-8")

    texts = Translations(file)

    assert (texts("sign_up.title"), texts("home.hello", name="Ada")) == ("Konto anlegen", "Ada, hallo.")


def test_unreadable_english_texts_are_refused_at_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "en.toml").write_text("[sign_up\n", encoding="utf-8")
    monkeypatch.setattr("app.web.i18n.ENGLISH", tmp_path / "en.toml")

    with pytest.raises(ValidationError, match=r"needs the English texts in app/web/locales/en\.toml"):
        WebSettings(_env_file=None)


def test_errors_are_translated_by_their_code(tmp_path: Path) -> None:
    file = tmp_path / "xx.toml"
    file.write_text('[errors]\nincorrect-code = "Nix da."\nbusy = "{detail} ({retry_after} s)"\n', encoding="utf-8")

    translations = Translations(file)

    assert translations.error("incorrect-code", "Incorrect code.") == "Nix da."
    assert translations.error("incorrect-code", "A better sentence.") == "Nix da."
    assert translations.error("busy", "Busy.", retry_after="3") == "Busy. (3 s)"


def test_error_falls_back_to_english_without_a_text_or_a_value(tmp_path: Path) -> None:
    file = tmp_path / "xx.toml"
    file.write_text('[errors]\nbusy = "Bitte in {retry_after} s wieder."\n', encoding="utf-8")

    translations = Translations(file)

    assert translations.error("conflict", "Something else.") == "Something else."
    assert translations.error("busy", "Busy.") == "Busy."
    assert translations.error("busy", "Busy.", retry_after=None) == "Busy."
