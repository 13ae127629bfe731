"""The grammar of fields: `name:type[?][=default][:unique][:index]`, separated by spaces."""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Literal
from uuid import UUID

from resources.errors import RefusedError
from resources.names import NAME, Names, camel_case, check_field_name

Scope = Literal["owner", "shared", "admin"]

GRAMMAR = "name:type[?][=default][:unique][:index]"
TYPES = "str(n), text, int, decimal(p,s), bool, date, datetime, uuid, enum(a,b), json, ref(plural)"
MAX_FIELDS = 90
MAX_STR = 10_000
# A longer text does not fit into an entry of an index of PostgreSQL, together with the owner.
MAX_INDEXED_STR = 600
MAX_ENUM = 50
# SQLite holds this many decimal digits exactly: see FixedPoint in app/core/db/models.py of a project.
MAX_DIGITS = 15
INT = range(-(2**31), 2**31)
TOKEN = re.compile(
    r"(?P<name>[^:\s]*):(?P<type>[a-z]+)(?:\((?P<args>[^()]*)\))?(?P<optional>\?)?"
    r"(?:=(?P<default>\"[^\"]*\"|'[^']*'|[^\s\"']*?))?(?P<flags>(?::(?:unique|index))*)"
)
# Enum members become attributes of a class, which already has these.
ENUM_SUFFIXES = frozenset({"create", "read", "record", "update"})


@dataclass(frozen=True)
class Reference:
    """The resource, or the accounts, that a field refers to."""

    names: Names
    # The folder in app/, and the class of the model in its models.py.
    package: str
    cls: str
    scope: Scope | None

    @property
    def module(self) -> str:
        return f"app.{self.package}.models"

    @property
    def owned(self) -> bool:
        """Whether each row belongs to an account."""
        return self.scope == "owner"

    @property
    def is_user(self) -> bool:
        return self.package == "accounts"


@dataclass(frozen=True)
class Field:
    """A field of a resource; expressions are source code of Python."""

    resource: Names
    # As it is typed; `name` is what the model calls it.
    typed: str
    kind: str
    optional: bool = False
    unique: bool = False
    index: bool = False
    length: int = 0
    digits: tuple[int, int] = (12, 2)
    choices: tuple[str, ...] = ()
    target: str = ""
    default: str | None = None
    reference: Reference | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        return f"{self.typed}_id" if self.kind == "ref" else self.typed

    @property
    def words(self) -> str:
        return self.typed.replace("_", " ")

    @property
    def enum(self) -> str:
        return f"{self.resource.cls}{camel_case(self.typed)}"

    @property
    def members(self) -> list[tuple[str, str]]:
        return [(member(choice), choice) for choice in self.choices]

    @property
    def required(self) -> bool:
        """Whether a request that creates a row must contain the field."""
        return not self.optional and self.default is None

    @property
    def python_type(self) -> str:
        return {
            "str": "str",
            "text": "str",
            "int": "int",
            "decimal": "Decimal",
            "bool": "bool",
            "date": "date",
            "datetime": "datetime",
            "uuid": "UUID",
            "enum": self.enum,
            "json": "dict[str, Any]",
            "ref": "UUID",
        }[self.kind]

    @property
    def annotation(self) -> str:
        return self.python_type + (" | None" if self.optional else "")

    @property
    def is_self_reference(self) -> bool:
        return self.kind == "ref" and self.target == self.resource.plural

    @property
    def column(self) -> str:
        """The declaration in the model."""
        arguments = [self._column_type()]
        if self.default is not None:
            arguments.append(f"default={'dict' if self.kind == 'json' else self.default}")
        # A unique constraint has an index. PostgreSQL creates none for a foreign key.
        if (self.index or self.kind == "ref") and not self.unique:
            arguments.append("index=True")
        given = ", ".join(filter(None, arguments))
        return f"{self.name}: Mapped[{self.annotation}]" + (f" = mapped_column({given})" if given else "")

    def _column_type(self) -> str:
        if self.kind == "str":
            return f"String({self.length})"
        if self.kind == "text":
            return "Text"
        if self.kind == "decimal" and self.digits != (12, 2):
            return f"FixedPoint({self.digits[0]}, {self.digits[1]})"
        if self.kind == "json":
            # Otherwise null would be stored as the JSON value null.
            return "JSON(none_as_null=True)" if self.optional else "JSON"
        if self.kind == "ref":
            return f"ForeignKey({self._referred_column()}{self._deletion_rule()})"
        return ""

    def _deletion_rule(self) -> str:
        """Return what happens when the referred row is deleted.

        A required reference must not let other accounts delete rows, except with an account itself: then the deletion
        is refused.
        """
        if self.optional:
            return ', ondelete="SET NULL"'
        reference = self.reference
        return ', ondelete="CASCADE"' if reference is None or reference.owned or reference.is_user else ""

    def _referred_column(self) -> str:
        if self.is_self_reference:
            return f'"{self.target}.id"'
        assert self.reference is not None  # noqa: S101  # for the type checker: the project has resolved it
        return f"{self.reference.cls}.id"

    @property
    def request_type(self) -> str:
        """The type in the bodies of requests."""
        kinds = {
            "str": "NonEmptyLine" if self.length == 200 else f"Annotated[str, Line({self.length}, required=True)]",
            "text": "MultiLine",
            "int": "Int32",
            "decimal": f"Annotated[Decimal, Field(max_digits={self.digits[0]}, decimal_places={self.digits[1]})]",
            "datetime": "Time",
            "json": "JsonObject",
        }
        return kinds.get(self.kind, self.python_type)

    @property
    def creation(self) -> str:
        """The declaration in the body of a POST."""
        kind = f"{self.request_type} | None" if self.optional else self.request_type
        if self.required:
            return f"{self.name}: {kind}"
        if self.default is None:
            return f"{self.name}: {kind} = None"
        default = "Field(default_factory=dict)" if self.kind == "json" else self.default
        return f"{self.name}: {kind} = {default}"

    @property
    def change(self) -> str:
        """The declaration in the body of a PATCH, whose fields need a default of any value."""
        if self.optional:
            return f"{self.name}: {self.request_type} | None = None"
        values = {
            "str": '""',
            "text": '""',
            "int": "0",
            "decimal": "Decimal(0)",
            "bool": "False",
            "date": "date.min",
            "datetime": "datetime.min",
            "json": "Field(default_factory=dict)",
            "enum": f"{self.enum}.{member(self.choices[0])}" if self.choices else "",
        }
        return f"{self.name}: {self.request_type} = {values.get(self.kind, 'UUID(int=0)')}"

    @property
    def parameter(self) -> str:
        """The name of the parameter of a query that finds a row by this field."""
        return f"{self.name}_value" if self.name in {"owner", self.resource.singular} else self.name

    # Values for the tests of the resource, as source code of JSON values.

    @property
    def json_default(self) -> str:
        """The value in a response if the request did not contain the field."""
        if self.default is None:
            return "None"
        match self.kind:
            case "enum":
                return f'"{next(choice for name, choice in self.members if self.default.endswith(f".{name}"))}"'
            case "decimal" | "uuid":
                return self.default.partition("(")[2].removesuffix(")")
            case "date":
                return f'"{date(*self._default_numbers())}"'
            case "datetime":
                return f'"{datetime(*self._default_numbers()).isoformat()}Z"'  # type: ignore[arg-type]  # the numbers of a date are at most seven integers
            case _:
                return self.default

    @property
    def form_default(self) -> str:
        """The default as a form has it, as source code of a text."""
        return self._as_form(self.json_default)

    @property
    def form_sample(self) -> str:
        """A value as a form has it and shows it again, as source code of a text."""
        return self._as_form(self.sample)

    def form_numbered(self, variable: str) -> str:
        value = self.numbered(variable)
        return f"str({value})" if self.kind == "int" else value

    def _as_form(self, value: str) -> str:
        if self.kind == "bool":
            return f'"{value.lower()}"'
        if self.kind == "datetime":
            return value.replace("Z", "+00:00")
        return value if value.startswith(("'", '"')) else f'"{value}"'

    def _default_numbers(self) -> list[int]:
        return [int(each) for each in re.findall(r"\b[0-9]+", self.default or "")]

    @property
    def sample(self) -> str:
        return self._value(1)

    @property
    def other(self) -> str:
        """Another valid value."""
        return self._value(2)

    def numbered(self, variable: str) -> str:
        """A valid value that is different for each value of the variable, a number below 10."""
        values = {
            "str": 'f"{NUMBER}"' if self.length < 4 else f'f"{self.words.capitalize()[: self.length - 2]} {{NUMBER}}"',
            "int": "NUMBER",
            "decimal": f'f"{self._decimal("{NUMBER}")}"',
            "date": 'f"2026-01-0{NUMBER + 1}"',
            "datetime": 'f"2026-01-0{NUMBER + 1}T09:30:00Z"',
        }
        return values.get(self.kind, "str(uuid4())").replace("NUMBER", variable)

    def _value(self, number: int) -> str:
        texts = {
            "str": f'"{str(number) if self.length < 4 else self.words.capitalize()[: self.length - 2] + f" {number}"}"',
            "text": f'"First line\\nline {number}"',
            "int": str(40 + number),
            "decimal": f'"{self._decimal(str(number))}"',
            "bool": "True" if number == 1 else "False",
            "date": f'"2026-01-1{number}"',
            "datetime": f'"2026-01-1{number}T09:30:00Z"',
            "uuid": f'"01890000-0000-7000-8000-00000000000{number}"',
            "json": f'{{"number": {number}}}',
            "enum": f'"{self.choices[-number % len(self.choices)]}"' if self.choices else "",
        }
        return texts[self.kind]

    def _decimal(self, digit: str) -> str:
        precision, scale = self.digits
        if scale == 0:
            return digit
        return f"0.{'0' * (scale - 1)}{digit}" if precision == scale else f"{digit}.{'5'.ljust(scale, '0')}"

    @property
    def invalid(self) -> list[str]:
        """Values that the service must refuse."""
        values = {
            "str": ['""', '" "', '"two\\nlines"', '"NUL \\0"', "1", f'"x" * {self.length + 1}'],
            "text": ['"NUL \\0"', '"x" * 10_001', "1"],
            "int": ["2**31", "-(2**31) - 1", "1.5", '"many"'],
            "decimal": self._invalid_decimals(),
            "bool": ['"perhaps"', "2"],
            "date": ['"2026-02-30"', '"tomorrow"'],
            "datetime": ['"2026-01-12T09:30:00"', '"0001-01-01T00:00:00+14:00"', '"now"'],
            "uuid": ['"1"', "1"],
            "ref": ['"1"', "1"],
            "json": ["[]", '"{}"', '{"text": "x" * 10_000}'],
            "enum": ['"unknown-choice"', "1"],
        }[self.kind]
        return values if self.optional else [*values, "None"]

    def _invalid_decimals(self) -> list[str]:
        precision, scale = self.digits
        return [f'"0.{"0" * scale}1"', f'"1{"0" * (precision - scale)}"', '"NaN"', '"Infinity"', '"much"']


def member(choice: str) -> str:
    return choice.replace("-", "_").upper()


def parse_fields(resource: Names, text: str) -> list[Field]:
    """Return the fields of a resource. Raises RefusedError."""
    fields = [parse_field(resource, token) for token in split_fields(text)]
    if not fields:
        raise RefusedError(f"There are no fields: give at least one, such as FIELDS='title:str(200)'. Form: {GRAMMAR}")
    if len(fields) > MAX_FIELDS:
        raise RefusedError(f"A resource has at most {MAX_FIELDS} fields: split it into several resources.")
    names = [each.name for each in fields]
    for each in names:
        if names.count(each) > 1:
            raise RefusedError(f"The field {each} occurs twice: remove or rename one of them.")
    return fields


def split_fields(text: str) -> list[str]:
    """Split at the spaces outside of parentheses and quotation marks."""
    return re.findall(r"(?:\([^)]*\)|\"[^\"]*\"|'[^']*'|\S)+", text)


def parse_field(resource: Names, token: str) -> Field:
    """Return a field. Raises RefusedError."""
    found = TOKEN.fullmatch(token)
    if found is None:
        raise RefusedError(f"{token} is not a field: its form is {GRAMMAR}. Types: {TYPES}.")
    check_field_name(found["name"])
    flags = found["flags"].split(":")
    field = Field(
        resource,
        found["name"],
        found["type"],
        optional=bool(found["optional"]),
        unique="unique" in flags,
        index="index" in flags,
    )
    arguments = None if found["args"] is None else [each.strip() for each in found["args"].split(",")]
    field = _with_arguments(field, arguments)
    if field.name == f"{resource.singular}_id":
        raise RefusedError(f"The service itself uses the name {field.name}: choose another name for the field.")
    _check_flags(field)
    return field if found["default"] is None else _with_default(field, found["default"])


def _with_arguments(field: Field, arguments: list[str] | None) -> Field:
    read = READERS.get(field.kind)
    if read is not None:
        return read(field, arguments or [])
    if field.kind not in {"text", "int", "bool", "date", "datetime", "uuid", "json"}:
        raise RefusedError(f"{field.kind} is not a type of a field. Types: {TYPES}.")
    if arguments is not None:
        raise RefusedError(f"{field.typed}: the type {field.kind} takes nothing in parentheses.")
    return field


def _with_length(field: Field, arguments: list[str]) -> Field:
    length = _read_numbers(arguments, 1)
    if length is None or not 1 <= length[0] <= MAX_STR:
        raise RefusedError(
            f"{field.typed}: give the maximum length of str, from 1 to {MAX_STR}, such as {field.typed}:str(200)."
        )
    return replace(field, length=length[0])


def _with_digits(field: Field, arguments: list[str]) -> Field:
    digits = _read_numbers(arguments, 2)
    if digits is None or not 1 <= digits[0] <= MAX_DIGITS or digits[1] > digits[0]:
        raise RefusedError(
            f"{field.typed}: give the number of digits of decimal, from 1 to {MAX_DIGITS}, and how many of them are"
            f" decimals, such as {field.typed}:decimal(12,2)."
        )
    return replace(field, digits=(digits[0], digits[1]))


def _with_choices(field: Field, arguments: list[str]) -> Field:
    members = [member(each) for each in arguments]
    if not arguments or not all(re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", each) for each in arguments):
        raise RefusedError(
            f"{field.typed}: give the values of enum in lower-case letters, digits, hyphens and underscores, such as"
            f" {field.typed}:enum(open,done)."
        )
    if any(len(each) > MAX_ENUM for each in arguments):
        raise RefusedError(f"{field.typed}: a value of enum has at most {MAX_ENUM} characters.")
    if len(set(members)) < len(members):
        raise RefusedError(f"{field.typed}: two values of enum are equal, or differ only in hyphens and underscores.")
    if field.typed in ENUM_SUFFIXES:
        raise RefusedError(f"The service itself uses the class {field.enum}: choose another name for {field.typed}.")
    return replace(field, choices=tuple(arguments))


def _with_target(field: Field, arguments: list[str]) -> Field:
    if len(arguments) != 1 or not NAME.fullmatch(arguments[0]):
        raise RefusedError(
            f"{field.typed}: name what ref refers to in the plural, such as {field.typed}:ref(projects)."
        )
    if field.typed.endswith("_id"):
        raise RefusedError(f"{field.typed}: leave out _id, which a reference gets by itself.")
    return replace(field, target=arguments[0])


READERS: dict[str, Callable[[Field, list[str]], Field]] = {
    "str": _with_length,
    "decimal": _with_digits,
    "enum": _with_choices,
    "ref": _with_target,
}


def _read_numbers(arguments: list[str], count: int) -> list[int] | None:
    if len(arguments) != count or not all(re.fullmatch(r"[0-9]{1,6}", each) for each in arguments):
        return None
    return [int(each) for each in arguments]


def _check_flags(field: Field) -> None:
    flag = "unique" if field.unique else "index"
    if not (field.unique or field.index):
        return
    if field.kind in {"text", "json"} or field.length > MAX_INDEXED_STR:
        raise RefusedError(
            f"{field.typed} cannot be {flag}, because its values may be too long for an index: use str(n) with at most"
            f" {MAX_INDEXED_STR} characters."
        )
    if field.unique and field.kind in {"bool", "enum"}:
        raise RefusedError(f"{field.typed} cannot be unique: {field.kind} has too few values.")


def _with_default(field: Field, text: str) -> Field:
    if field.unique:
        raise RefusedError(f"{field.typed}: a unique field cannot have a default, which only one row could have.")
    if field.kind == "ref":
        raise RefusedError(f"{field.typed}: a reference cannot have a default.")
    quoted = len(text) >= 2 and text[0] in "\"'"
    value = text[1:-1] if quoted else text
    try:
        return replace(field, default=_read_default(field, value))
    except (ValueError, InvalidOperation):
        raise RefusedError(
            f"{field.typed}: {text or 'nothing'} is not a valid default for {field.kind}; give {EXAMPLES[field.kind]}."
        ) from None


EXAMPLES = {
    "str": "=draft or ='two words'",
    "text": "='' or ='two words'",
    "int": "=0",
    "decimal": "=9.99 within its digits",
    "bool": "=true or =false",
    "date": "=2026-01-31",
    "datetime": "=2026-01-31T09:30:00Z with its time zone",
    "uuid": "=01890000-0000-7000-8000-000000000000",
    "enum": "one of its values",
    "json": "={}",
}


def _read_default(field: Field, value: str) -> str:
    """Return the default as source code. Raises ValueError or InvalidOperation."""
    match field.kind:
        case "str" | "text":
            return _read_text(field, value)
        case "int":
            if not re.fullmatch(r"-?[0-9]{1,10}", value) or int(value) not in INT:
                raise ValueError
            return str(int(value))
        case "decimal":
            return _read_decimal(field, value)
        case "bool":
            return {"true": "True", "false": "False"}.get(value) or _refuse()
        case "date":
            day = date.fromisoformat(value)
            return f"date({day.year}, {day.month}, {day.day})"
        case "datetime":
            return _read_datetime(value)
        case "uuid":
            return f'UUID("{UUID(value)}")'
        case "enum":
            return f"{field.enum}.{member(value)}" if value in field.choices else _refuse()
        case _:
            return "{}" if value == "{}" else _refuse()


def _read_text(field: Field, value: str) -> str:
    is_control = any(unicodedata.category(each) == "Cc" for each in value)
    too_long = field.kind == "str" and (len(value) > field.length or value != value.strip() or not value)
    if is_control or too_long or '"' in value or "\\" in value or not (value.isprintable()):
        raise ValueError
    return f'"{value}"'


def _read_decimal(field: Field, value: str) -> str:
    number = Decimal(value)
    precision, scale = field.digits
    if not number.is_finite() or abs(number) >= 10 ** (precision - scale):
        raise ValueError
    exact = number.quantize(Decimal(1).scaleb(-scale))
    if exact != number:
        raise ValueError
    return f'Decimal("{exact}")'


def _read_datetime(value: str) -> str:
    moment = datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError
    try:
        utc = moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError from error
    parts = [utc.year, utc.month, utc.day, utc.hour, utc.minute, utc.second]
    if utc.microsecond:
        parts.append(utc.microsecond)
    return f"datetime({', '.join(map(str, parts))}, tzinfo=UTC)"


def _refuse() -> str:
    raise ValueError
