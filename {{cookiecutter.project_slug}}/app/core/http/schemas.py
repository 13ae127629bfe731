import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from annotated_types import GroupedMetadata
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.core.addresses import MailAddress

MAX_FIELDS = 100
# RFC 5321 allows 254 characters; an address may be longer before it is normalized.
MAX_EMAIL_LENGTH = 1000
# Longer input cannot be a code and is not normalized, because NFKC normalization can take quadratic time.
MAX_CODE_LENGTH = 100
# Characters of a JSON object as text, as many as a text of several lines may have.
MAX_JSON_LENGTH = 10_000
MINUS = "\N{MINUS SIGN}"
# Control characters, and format characters such as a zero-width space.
CONTROLS = frozenset({"Cc", "Cf"})
# CONTROLS, spaces, and combining marks, which are invisible without a letter before them.
INVISIBLE = CONTROLS | {"Mn", "Mc", "Me", "Zs", "Zl", "Zp"}
# Letters and symbols without a glyph, such as Hangul fillers, the blank Braille pattern and a musical null notehead.
BLANK = frozenset("\u115f\u1160\u2065\u2800\u3164\uffa0\ufffc\U0001d159")
# Code points reserved for invisible characters (Default_Ignorable_Code_Point); other unassigned ones may be new emoji.
IGNORABLE = (range(0xFFF0, 0xFFF9), range(0xE0000, 0xE1000))


class RequestModel(BaseModel):
    """A request body; unknown fields are invalid."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_too_many_fields(cls, data: object) -> object:
        # Each unknown field is a separate error: the errors of a 1 MB body would block the event loop for a second.
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise ValueError(f"must have at most {MAX_FIELDS} fields")
        return data


def _remove_defaults(schema: dict[str, Any]) -> None:
    for field in schema.get("properties", {}).values():
        field.pop("default", None)


class PatchModel(RequestModel):
    """The body of a PATCH; fields that are not sent remain unchanged (see `changed_fields`).

    Each field needs a default in Python. The OpenAPI document omits these defaults, because generated clients would
    send them.
    """

    model_config = ConfigDict(json_schema_extra=_remove_defaults)


class ResponseModel(BaseModel):
    """A response body, created from the attributes of a record."""

    model_config = ConfigDict(from_attributes=True)


class TimestampedModel(ResponseModel):
    id: UUID
    created_at: datetime
    updated_at: datetime


def _refuse_nul(value: str) -> str:
    # PostgreSQL cannot store NUL.
    if "\0" in value:
        raise PydanticCustomError("nul_character", "must not contain the character NUL")
    return value


def _refuse_control(value: str) -> str:
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise PydanticCustomError("control_characters", "must not contain control characters")
    return value


def is_blank(text: str) -> bool:
    """Return whether a text has no visible characters."""
    return not any(_is_visible(character) for character in text)


def _is_visible(character: str) -> bool:
    if unicodedata.category(character) in INVISIBLE or character in BLANK:
        return False
    return not any(ord(character) in reserved for reserved in IGNORABLE)


def _empty_blank(value: str) -> str:
    # Text with visible characters keeps its invisible ones: emoji need joiners, and mixed scripts need direction marks.
    return "" if is_blank(value) else value


def _refuse_empty(value: str) -> str:
    if not value:
        raise PydanticCustomError("blank", "must not be empty")
    return value


def _refuse_display_name(value: object) -> object:
    # The e-mail validator would accept `Ada <ada@example.com>` and extract the address from it.
    if isinstance(value, str) and "<" in value:
        raise PydanticCustomError("display_name", "must be an address without a name")
    return value


def normalize_code(typed: str) -> str:
    """Normalize a typed code: remove spaces and control characters, and convert digits and dashes to ASCII."""
    if len(typed) > MAX_CODE_LENGTH:
        return typed
    return "".join(map(_normalize_code_character, unicodedata.normalize("NFKC", typed)))


def _normalize_code_character(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "Pd" or character == MINUS:
        return "-"
    return "" if character.isspace() or category in CONTROLS else character


def _lowercase(value: str) -> str:
    """Convert the whole address to lower case: providers ignore the case, and people type it inconsistently."""
    # Convert each letter separately, because the lower case of `Σ` depends on its position in the text. Keep `İ`,
    # because its lower case has two characters.
    return "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in value)


@dataclass(frozen=True)
class Line(GroupedMetadata):
    """A text of one line, with its maximum length: `Annotated[str, Line(50)]`; a `required` one is not empty."""

    max_length: int
    required: bool = False

    def __iter__(self) -> Iterator[object]:
        yield from StringConstraints(strip_whitespace=True, max_length=self.max_length)
        yield AfterValidator(_refuse_control)
        yield AfterValidator(_empty_blank)
        if self.required:
            yield AfterValidator(_refuse_empty)
            # `_refuse_empty` checks the length; `min_length` documents the check in the OpenAPI document.
            yield from StringConstraints(min_length=1)


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise PydanticCustomError("datetime_range", "must be between the years 1 and 9999 in UTC") from error


def _refuse_unfit_json(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    # Python's parser accepts NaN, Infinity and unpaired surrogates; the database and clients do not.
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False).encode().decode()
    except ValueError as error:
        raise PydanticCustomError("invalid_json", "must not contain NaN, Infinity or unpaired surrogates") from error
    if len(text) > MAX_JSON_LENGTH:
        raise PydanticCustomError(
            "json_too_long", "must have at most {max_length} characters as JSON", {"max_length": MAX_JSON_LENGTH}
        )
    return value


SingleLine = Annotated[str, Line(200)]
NonEmptyLine = Annotated[str, Line(200, required=True)]
MultiLine = Annotated[
    str, StringConstraints(max_length=10_000), AfterValidator(_refuse_nul), AfterValidator(_empty_blank)
]
# The range of a column of the type Integer.
Int32 = Annotated[int, Field(ge=-(2**31), le=2**31 - 1)]
# A time with its time zone, converted to UTC.
Time = Annotated[AwareDatetime, AfterValidator(_to_utc)]
JsonObject = Annotated[dict[str, JsonValue], AfterValidator(_refuse_unfit_json)]
EmailAddress = Annotated[MailAddress, BeforeValidator(_refuse_display_name), AfterValidator(_lowercase)]
_email = TypeAdapter(EmailAddress)


def normalize_email(typed: str) -> str:
    """Return a typed address as sign-up stores it; for an invalid one, return text that matches no account."""
    typed = typed.strip()
    if len(typed) > MAX_EMAIL_LENGTH or "\0" in typed:
        return ""
    try:
        return _email.validate_python(typed)
    except ValidationError:
        return _lowercase(typed)


def changed_fields(data: BaseModel) -> dict[str, Any]:
    """Return only the fields that the body of a PATCH contains."""
    return data.model_dump(exclude_unset=True)
