import unicodedata
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.core.addresses import MailAddress

MAX_FIELDS = 100
# RFC 5321 allows 254 characters; one that is typed with others may be longer than it is stored.
MAX_EMAIL_LENGTH = 1000
# Longer input cannot be a code; NFKC normalization can take quadratic time.
MAX_CODE_LENGTH = 100
MINUS = "\N{MINUS SIGN}"
# Control characters, and those that only format, such as a zero-width space.
CONTROLS = frozenset({"Cc", "Cf"})
# Spaces, and marks that show nothing without a letter before them.
UNSEEN = CONTROLS | {"Mn", "Mc", "Me", "Zs", "Zl", "Zp"}
# Letters and symbols without a picture, such as the fillers of Hangul, the blank of Braille and a note without a head.
BLANK = frozenset("\u115f\u1160\u2065\u2800\u3164\uffa0\ufffc\U0001d159")
# Reserved for characters that show nothing (Default_Ignorable_Code_Point); other unassigned ones may be newer emoji.
IGNORABLE = (range(0xFFF0, 0xFFF9), range(0xE0000, 0xE1000))


class RequestModel(BaseModel):
    """A request body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_too_many_fields(cls, data: object) -> object:
        # Each unknown one is an error of its own: those of a body of 1 MB would keep the event loop for a second.
        if isinstance(data, dict) and len(data) > MAX_FIELDS:
            raise ValueError(f"must have at most {MAX_FIELDS} fields")
        return data


def _remove_defaults(schema: dict[str, Any]) -> None:
    for field in schema.get("properties", {}).values():
        field.pop("default", None)


class PatchModel(RequestModel):
    """The body of a PATCH: fields that are not sent stay as they are (see `dump_changes`).

    Python needs a default for each field; the OpenAPI document has none, as clients would send it.
    """

    model_config = ConfigDict(json_schema_extra=_remove_defaults)


class ResponseModel(BaseModel):
    """A response body, read from a row."""

    model_config = ConfigDict(from_attributes=True)


class TimestampedModel(ResponseModel):
    id: UUID
    created_at: datetime
    updated_at: datetime


def _refuse_nul(value: str) -> str:
    # PostgreSQL cannot store it, and would answer with an error of its own.
    if "\0" in value:
        raise PydanticCustomError("nul_character", "must not contain the character NUL")
    return value


def _refuse_control(value: str) -> str:
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise PydanticCustomError("control_characters", "must not contain control characters")
    return value


def is_blank(text: str) -> bool:
    """Whether a text shows nothing, although it may have characters."""
    return not any(_is_seen(character) for character in text)


def _is_seen(character: str) -> bool:
    if unicodedata.category(character) in UNSEEN or character in BLANK:
        return False
    return not any(ord(character) in reserved for reserved in IGNORABLE)


def _empty_blank(value: str) -> str:
    # Beside characters that show something, joiners of emoji and marks of direction stay as they are.
    return "" if is_blank(value) else value


def _refuse_empty(value: str) -> str:
    if not value:
        raise PydanticCustomError("blank", "must not be empty")
    return value


def _refuse_display_name(value: object) -> object:
    # `Ada <ada@example.com>` is a line of a message; the validator would take the address out of it.
    if isinstance(value, str) and "<" in value:
        raise PydanticCustomError("display_name", "must be an address alone, without a name")
    return value


def normalize_code(typed: str) -> str:
    """Normalize a typed code: drop spaces and control characters, and map digits and dashes to ASCII."""
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
    """Lower-case the whole address: no provider tells mailboxes apart by case, and people do not type alike."""
    # Letter by letter: `İ` would become two characters, and the lower case of `Σ` depends on its position.
    return "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in value)


SingleLine = Annotated[
    str,
    StringConstraints(strip_whitespace=True, max_length=200),
    AfterValidator(_refuse_control),
    AfterValidator(_empty_blank),
]
# The second constraint is for the OpenAPI document.
NonEmptyLine = Annotated[SingleLine, AfterValidator(_refuse_empty), StringConstraints(min_length=1)]
MultiLine = Annotated[
    str, StringConstraints(max_length=10_000), AfterValidator(_refuse_nul), AfterValidator(_empty_blank)
]
EmailAddress = Annotated[MailAddress, BeforeValidator(_refuse_display_name), AfterValidator(_lowercase)]
_email = TypeAdapter(EmailAddress)


def normalize_email(typed: str) -> str:
    """Write an address as sign-up does; what is no address stays as it is, and belongs to nobody."""
    typed = typed.strip()
    if len(typed) > MAX_EMAIL_LENGTH or "\0" in typed:
        return ""
    try:
        return _email.validate_python(typed)
    except ValidationError:
        return _lowercase(typed)


def changed_fields(data: BaseModel) -> dict[str, Any]:
    """What a PATCH sent, and nothing else."""
    return data.model_dump(exclude_unset=True)
