"""Normalization of typed text: text without visible characters is empty."""

from datetime import UTC, datetime
from typing import Annotated, Any

import httpx2
import pytest
from pydantic import TypeAdapter, ValidationError

from app.core.http.schemas import Int32, JsonObject, Line, MultiLine, NonEmptyLine, SingleLine, Time
from tests.support.accounts import Account

BLANK = [
    "",
    "   ",
    "\N{NO-BREAK SPACE}",
    "\N{IDEOGRAPHIC SPACE}",
    "\N{ZERO WIDTH SPACE}",
    "\N{ZERO WIDTH JOINER}" * 3,
    "\N{ZERO WIDTH NO-BREAK SPACE} \N{WORD JOINER}",
    "\N{SOFT HYPHEN}",
    "\N{COMBINING GRAPHEME JOINER}",
    "\N{COMBINING ACUTE ACCENT}\N{COMBINING ENCLOSING CIRCLE}",
    "\N{RIGHT-TO-LEFT OVERRIDE}\N{POP DIRECTIONAL FORMATTING}",
    "\N{LEFT-TO-RIGHT MARK}\N{RIGHT-TO-LEFT ISOLATE}",
    "\N{HANGUL FILLER}",
    "\N{HALFWIDTH HANGUL FILLER}",
    "\N{HANGUL CHOSEONG FILLER}\N{HANGUL JUNGSEONG FILLER}",
    "\N{BRAILLE PATTERN BLANK}",
    "\N{VARIATION SELECTOR-16}",
    "\N{MONGOLIAN VOWEL SEPARATOR}",
    "\N{KHMER VOWEL INHERENT AQ}",
    "\N{OBJECT REPLACEMENT CHARACTER}",
    "\N{MUSICAL SYMBOL NULL NOTEHEAD}",
    "\N{TAG LATIN SMALL LETTER A}",
    "\U000e0fff",
    "\ufff8",
    "\u2065",
]
SEEN = [
    "0",
    ".",
    "é",
    "e\N{COMBINING ACUTE ACCENT}",
    "क्षि",
    "می\N{ZERO WIDTH NON-JOINER}خواهم",
    "\N{RIGHT-TO-LEFT MARK}שלום",
    "👩\N{ZERO WIDTH JOINER}💻",
    "❤\N{VARIATION SELECTOR-16}",
    "🏴\N{TAG LATIN SMALL LETTER G}\N{CANCEL TAG}",
    "⠁",
    "가",
    # An emoji of 2024, which is unassigned in the Unicode data of older versions of Python.
    "\U0001fae9",
    "\ue000",
]


@pytest.mark.parametrize("text", BLANK)
def test_text_of_invisible_characters_is_treated_as_empty(text: str) -> None:
    assert TypeAdapter(SingleLine).validate_python(text) == ""
    assert TypeAdapter(MultiLine).validate_python(text) == ""
    with pytest.raises(ValidationError, match="must not be empty"):
        TypeAdapter(NonEmptyLine).validate_python(text)


@pytest.mark.parametrize("text", SEEN)
def test_visible_text_is_unchanged(text: str) -> None:
    for kind in (SingleLine, MultiLine, NonEmptyLine):
        assert TypeAdapter(kind).validate_python(text) == text


def test_json_schema_of_non_empty_line_has_min_length() -> None:
    assert TypeAdapter(NonEmptyLine).json_schema() == {"type": "string", "minLength": 1, "maxLength": 200}


async def test_user_name_of_invisible_characters_is_stored_as_empty(client: httpx2.AsyncClient, user: Account) -> None:
    name = {"name": "\N{HANGUL FILLER}\N{ZERO WIDTH SPACE}"}

    changed = await client.patch("/api/v1/users/me", json=name, headers=user.headers)

    assert changed.json()["name"] == ""


@pytest.mark.parametrize(
    ("adapter", "value", "code"),
    [
        (TypeAdapter(Annotated[str, Line(5)]), "x" * 6, "string_too_long"),
        (TypeAdapter(Annotated[str, Line(5)]), "a\nb", "control_characters"),
        (TypeAdapter(Annotated[str, Line(5, required=True)]), " ", "blank"),
        (TypeAdapter(Int32), 2**31, "less_than_equal"),
        (TypeAdapter(Int32), -(2**31) - 1, "greater_than_equal"),
        (TypeAdapter(Time), "2026-01-12T09:30:00", "timezone_aware"),
        (TypeAdapter(Time), "0001-01-01T00:00:00+14:00", "datetime_range"),
        (TypeAdapter(JsonObject), [], "dict_type"),
        (TypeAdapter(JsonObject), {"a": float("nan")}, "invalid_json"),
        (TypeAdapter(JsonObject), {"a": "\ud800"}, "invalid_json"),
        (TypeAdapter(JsonObject), {"a": "x" * 10_000}, "json_too_long"),
    ],
    ids=lambda value: None if isinstance(value, TypeAdapter) else str(value)[:30],
)
def test_value_that_a_column_cannot_store_is_refused(adapter: TypeAdapter[Any], value: object, code: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        adapter.validate_python(value)

    assert [error["type"] for error in refusal.value.errors()] == [code]


@pytest.mark.parametrize(
    ("adapter", "value", "valid"),
    [
        (TypeAdapter(Annotated[str, Line(5)]), "  lines", "lines"),
        (TypeAdapter(Int32), -(2**31), -(2**31)),
        (TypeAdapter(Time), "2026-01-12T09:30:00+02:00", datetime(2026, 1, 12, 7, 30, tzinfo=UTC)),
        (TypeAdapter(JsonObject), {"a": [1, None, {"b": "Ω"}]}, {"a": [1, None, {"b": "Ω"}]}),
    ],
    ids=lambda value: None if isinstance(value, TypeAdapter) else str(value)[:30],
)
def test_value_that_a_column_can_store_is_accepted(adapter: TypeAdapter[Any], value: object, valid: object) -> None:
    assert adapter.validate_python(value) == valid
