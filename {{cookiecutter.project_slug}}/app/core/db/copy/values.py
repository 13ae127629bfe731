"""Values of rows: read from one database, checked for the other one, and encoded for a checksum.

The values are read as the drivers return them, because SQLAlchemy's types convert some faulty values silently: the
boolean 7 would become true, and a decimal number with too many digits would be rounded.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from hashlib import sha256
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import Column, ColumnElement, Dialect, Table
from sqlalchemy.types import NullType, TypeEngine

from app.core.db.models import SQLITE_DIGITS, FixedPoint, UTCDateTime

Type = TypeEngine[Any]
Converter = Callable[[Any], Any]
# The text of a value for the checksum, without the letter of its kind.
ENCODERS: dict[type, tuple[bytes, Callable[[Any], bytes]]] = {
    bool: (b"b", lambda value: b"1" if value else b"0"),
    int: (b"i", lambda value: str(value).encode()),
    # The sum turns a negative zero, which SQLite does not store, into zero.
    float: (b"f", lambda value: (value + 0.0).hex().encode()),
    Decimal: (b"d", lambda value: _write_decimal(value).encode()),
    str: (b"s", lambda value: value.encode()),
    bytes: (b"y", bytes),
    datetime: (b"t", lambda value: value.isoformat().encode()),
    date: (b"a", lambda value: value.isoformat().encode()),
    time: (b"c", lambda value: value.isoformat().encode()),
    UUID: (b"u", lambda value: value.bytes),
}


class FaultyValueError(Exception):
    """A value that cannot be copied unchanged; the message describes the problem and omits the value."""


class Checksum:
    """The sum of the hashes of rows: it depends on no order, because databases sort texts differently."""

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def add(self, row: bytes) -> None:
        self.rows += 1
        self._sum = (self._sum + int.from_bytes(sha256(row).digest())) % 2**256

    def __str__(self) -> str:
        return f"{self._sum:064x}"


class RowReader:
    """Reads the rows of a table from one kind of database, for another or the same kind."""

    def __init__(self, table: Table, source: Dialect, target: Dialect) -> None:
        self._columns = copied_columns(table)
        self._converters = [_make_converter(_plain(column.type), target.name) for column in self._columns]
        self._is_json = [isinstance(column.type, sa.JSON) for column in self._columns]
        # The expressions to select, whose values `read` expects.
        self.selected = [_select(column, source) for column in self._columns]

    def read(self, row: Sequence[Any]) -> tuple[dict[str, Any], bytes]:
        """Return the values to insert, and the bytes for the checksum; raise FaultyValueError for a faulty value."""
        values: dict[str, Any] = {}
        parts: list[bytes] = []
        for column, convert, is_json, raw in zip(self._columns, self._converters, self._is_json, row, strict=True):
            try:
                value = None if raw is None else convert(raw)
                encoded = b"n" if raw is None else _encode_json(value) if is_json else _encode(value)
            except FaultyValueError as error:
                raise FaultyValueError(f"{column.name} {error}") from error
            except (ValueError, TypeError, ArithmeticError):
                kind = type(_plain(column.type)).__name__
                raise FaultyValueError(f"{column.name} is not a valid {kind}") from None
            if raw is None and not column.nullable:
                raise FaultyValueError(f"{column.name} is missing (NULL), but the column requires a value")
            values[column.name] = value
            parts.append(b"%d:%b" % (len(encoded), encoded))
        return values, b"".join(parts)


def copied_columns(table: Table) -> list[Column[Any]]:
    """Return the columns of a table except those that the database computes."""
    return [column for column in table.columns if column.computed is None]


def insert_statement(table: Table) -> sa.Insert:
    """Return a statement whose parameters are the values of RowReader, by the names of the columns."""
    return sa.insert(table).values(
        {column.name: sa.bindparam(column.name, type_=_insert_type(column.type)) for column in copied_columns(table)}
    )


def _insert_type(kind: Type) -> Type:
    if isinstance(kind, sa.JSON):
        kind = kind.copy()
        # Otherwise, SQLAlchemy would store NULL as the JSON value null.
        kind.none_as_null = True
    elif isinstance(kind, sa.Uuid):
        kind = sa.Uuid(as_uuid=True, native_uuid=kind.native_uuid)
    return kind


def _plain(kind: Type) -> Type:
    """Return the type of SQLAlchemy that a type of app/core/db/models.py stores its values with."""
    return kind.impl_instance if isinstance(kind, FixedPoint | UTCDateTime) else kind


def _select(column: Column[Any], dialect: Dialect) -> ColumnElement[Any]:
    kind = _plain(column.type)
    if isinstance(kind, sa.JSON) and dialect.name == "postgresql":
        # The driver would return the same value for NULL and for the JSON value null.
        return sa.type_coerce(sa.cast(column, sa.Text), NullType()).label(column.name)
    # Types that this module does not know, such as a TypeDecorator of a feature, are left to SQLAlchemy.
    return sa.type_coerce(column, NullType()).label(column.name) if _find_factory(kind) else column


def _encode(value: object) -> bytes:
    letter, encode = ENCODERS.get(type(value), (b"r", lambda other: repr(other).encode()))
    return letter + encode(value)


def _encode_json(value: object) -> bytes:
    value = None if value is sa.JSON.NULL else value
    return b"j" + json.dumps(value, sort_keys=True, allow_nan=False).encode()


def _write_decimal(value: Decimal) -> str:
    """Write the number without an exponent and without trailing zeros."""
    whole, _, fraction = format(value, "f").partition(".")
    text = f"{whole}.{fraction}".rstrip("0").rstrip(".") if fraction else whole
    return "0" if text == "-0" else text


def _make_converter(kind: Type, target: str) -> Converter:
    factory = _find_factory(kind)
    return factory(kind, target) if factory else lambda value: value


def _find_factory(kind: Type) -> Callable[[Any, str], Converter] | None:
    return next((factory for known, factory in FACTORIES if isinstance(kind, known)), None)


def _boolean(_kind: sa.Boolean, _target: str) -> Converter:
    def convert(value: object) -> bool:
        if value not in {0, 1}:
            raise FaultyValueError("is not a boolean")
        return bool(value)

    return convert


def _integer(kind: sa.Integer, _target: str) -> Converter:
    bits = 16 if isinstance(kind, sa.SmallInteger) else 64 if isinstance(kind, sa.BigInteger) else 32
    limit = 2 ** (bits - 1)

    def convert(value: object) -> int:
        if not isinstance(value, int):
            raise FaultyValueError("is not an integer")
        if not -limit <= value < limit:
            raise FaultyValueError(f"does not fit into an integer of {bits} bits")
        return int(value)

    return convert


def _float(_kind: Type, target: str) -> Converter:
    def convert(value: object) -> float:
        if not isinstance(value, float | int | Decimal):
            raise FaultyValueError("is not a number")
        number = float(value)
        # SQLite stores it as NULL.
        if number != number and target == "sqlite":  # only NaN differs from itself
            raise FaultyValueError("is NaN, which SQLite cannot store")
        return number

    return convert


def _numeric(kind: sa.Numeric[Any], target: str) -> Converter:
    scale = kind.scale or 0

    def convert(value: object) -> Decimal:
        if not isinstance(value, float | int | Decimal):
            raise FaultyValueError("is not a number")
        # The shortest decimal number that gives the same float, which is the one that was stored.
        number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
        if not number.is_finite():
            raise FaultyValueError("is not a finite number")
        whole, _, fraction = _write_decimal(number).removeprefix("-").partition(".")
        if kind.precision is not None and len(whole.lstrip("0")) > kind.precision - scale:
            raise FaultyValueError(f"has more than {kind.precision - scale} digits before the decimal point")
        if kind.precision is not None and len(fraction) > scale:
            raise FaultyValueError(f"has more than {scale} digits after the decimal point")
        if target == "sqlite" and len((whole + fraction).strip("0")) > SQLITE_DIGITS:
            raise FaultyValueError(f"has more than {SQLITE_DIGITS} digits, which SQLite does not store exactly")
        return number

    return convert


def _text(kind: sa.String, target: str) -> Converter:
    def convert(value: object) -> str:
        if not isinstance(value, str):
            raise FaultyValueError("is not a text")
        if target == "postgresql" and "\0" in value:
            raise FaultyValueError("contains a NUL character, which PostgreSQL cannot store")
        if kind.length is not None and len(value) > kind.length:
            raise FaultyValueError(f"has {len(value):,} characters, but the column holds {kind.length:,}")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise FaultyValueError("is not valid UTF-8") from None
        return value

    return convert


def _enum(kind: sa.Enum, _target: str) -> Converter:
    def convert(value: object) -> str:
        if not isinstance(value, str) or value not in kind.enums:
            raise FaultyValueError(f"is none of {', '.join(kind.enums)}")
        return value

    return convert


def _time(kind: sa.DateTime, _target: str) -> Converter:
    def convert(value: Any) -> datetime:  # noqa: ANN401  # a datetime or, from SQLite, its text
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        if not kind.timezone:
            return moment
        # SQLite stores UTC without a time zone.
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    return convert


def _uuid(_kind: Type, _target: str) -> Converter:
    return lambda value: value if isinstance(value, UUID) else UUID(value)


def _json(_kind: Type, _target: str) -> Converter:
    def convert(value: Any) -> Any:  # noqa: ANN401  # JSON, whose structure is unknown
        # SQLite stores a number that is a whole document as a number.
        parsed = value if isinstance(value, int | float) else json.loads(value)
        return sa.JSON.NULL if parsed is None else parsed

    return convert


def _bytes(_kind: Type, _target: str) -> Converter:
    def convert(value: object) -> bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise FaultyValueError("is not binary data")
        return bytes(value)

    return convert


# A subclass comes before its base class.
FACTORIES: tuple[tuple[type[Type], Callable[[Any, str], Converter]], ...] = (
    (sa.Boolean, _boolean),
    (sa.Integer, _integer),
    (sa.Float, _float),
    (sa.Numeric, _numeric),
    (sa.Enum, _enum),
    (sa.String, _text),
    (sa.DateTime, _time),
    (sa.Date, lambda _kind, _target: lambda value: value if isinstance(value, date) else date.fromisoformat(value)),
    (sa.Time, lambda _kind, _target: lambda value: value if isinstance(value, time) else time.fromisoformat(value)),
    (sa.Uuid, _uuid),
    (sa.JSON, _json),
    (sa.LargeBinary, _bytes),
)
