from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import DateTime, Dialect, MetaData, Numeric, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from uuid_utils.compat import uuid7

# A key of `Table.info`. It marks a table whose rows the service's role may only insert and select: see the grants in
# app/core/db/migrations.py.
APPEND_ONLY = "append_only"


def utc_now() -> datetime:
    return datetime.now(UTC)


class UTCDateTime(TypeDecorator[datetime]):
    """Timezone-aware UTC times on every database; SQLite stores them without a time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        # PostgreSQL needs no conversion: psycopg returns UTC, because every connection sets the time zone.
        return super().result_processor(dialect, coltype) if dialect.name == "sqlite" else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=UTC)


# SQLite stores decimals as floating point numbers, which hold this many decimal digits exactly.
SQLITE_DIGITS = 15


class FixedPoint(TypeDecorator[Decimal]):
    """Exact decimal numbers on every database, such as amounts of money.

    Raises ValueError for a value that `precision` and `scale` do not hold exactly: the application must round it.
    """

    impl = Numeric
    cache_ok = True

    def __init__(self, precision: int = 12, scale: int = 2) -> None:
        if precision > SQLITE_DIGITS:
            raise ValueError(
                f"The precision must be at most {SQLITE_DIGITS}, because SQLite holds no more digits exactly. For more"
                " digits, use PostgreSQL and sqlalchemy.Numeric."
            )
        super().__init__(precision, scale)
        self.precision = precision
        self.scale = scale

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> Decimal | None:
        if value is None:
            return None
        value = Decimal(value)
        # Check the size first, since `quantize` raises InvalidOperation for large numbers.
        if value.is_finite() and abs(value) < 10 ** (self.precision - self.scale):
            exact = value.quantize(Decimal(1).scaleb(-self.scale))
            if exact == value:
                return exact
        raise ValueError(
            f"{value} does not fit into {self.precision} digits, {self.scale} of them decimals: round the value, or"
            " enlarge the column."
        )


def _enum_values(members: type[Enum]) -> list[str]:
    return [member.value for member in members]


# Stored as the text of the member's value, so that a new member needs no migration. Other texts raise LookupError.
ENUM = sa.Enum(Enum, native_enum=False, length=50, values_callable=_enum_values, validate_strings=True)


class Base(DeclarativeBase):
    # Alembic can drop only constraints and indexes that have a name.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UTCDateTime, Decimal: FixedPoint, Enum: ENUM}  # noqa: RUF012  # SQLAlchemy reads it at class creation, and nothing changes it


class IdMixin:
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid7, sort_order=-1)
    created_at: Mapped[datetime] = mapped_column(default=utc_now, sort_order=1)


class TimestampMixin(IdMixin):
    updated_at: Mapped[datetime] = mapped_column(default=utc_now, onupdate=utc_now, sort_order=2)
