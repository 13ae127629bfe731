"""Programs that run in a project and fill its database with rows that are hard to copy, or print all rows."""

_FRAME = """
import asyncio
import random
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import sqlalchemy as sa

from app.core.config.load import load_settings
from app.core.db.engine import create_owner_engine
from app.core.db.models import Base, FixedPoint, UTCDateTime
from app.features import FEATURES, SETTINGS

assert FEATURES


async def main():
    engine = create_owner_engine(load_settings(SETTINGS))
    async with engine.begin() as connection:
        await connection.run_sync(work)
    await engine.dispose()


BODY


asyncio.run(main())
"""
# Takes the number of rows of each table as its argument.
FILL_TABLES = _FRAME.replace(
    "BODY",
    """
choose = random.Random(1)
TEXTS = ["", "'", '"; DROP TABLE users; --', "NULL", "\\\\N", "\\t\\r\\n", "Ω n\\u0303", "👩‍🚀", "\\U0010ffff"]
JSON = [{}, [], "", "5", 5, False, {"a": [1, 0.1, 2**70, None, "\\0 \\ud800 Ω"]}, sa.JSON.NULL]
DAYS = [date.min, date.max, date(2000, 2, 29)]
TIMES = [
    datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC),
    datetime(1969, 7, 20, 20, 17, 40, 1, UTC), datetime.now(UTC),
]


def make(column, number, is_unique):
    kind = column.type
    if isinstance(kind, sa.Uuid):
        return UUID(int=choose.getrandbits(128))
    if isinstance(kind, sa.Boolean):
        return choose.choice([True, False])
    if isinstance(kind, sa.Integer):
        limit = 2 ** (63 if isinstance(kind, sa.BigInteger) else 31)
        return choose.choice([0, -limit, limit - 1])
    if isinstance(kind, sa.Float):
        return choose.choice([0.1 + 0.2, 1.7976931348623157e308, 5e-324, -1e-300])
    if isinstance(kind, FixedPoint):
        largest = Decimal(10 ** kind.precision - 1).scaleb(-kind.scale)
        return choose.choice([Decimal(0), largest, -largest, Decimal(1).scaleb(-kind.scale)])
    if isinstance(kind, sa.Enum):
        return choose.choice(list(kind.enum_class))
    if isinstance(kind, sa.String):
        length = kind.length or 200_000
        if is_unique:
            return f"{number}Ω"[:length]
        return choose.choice([*TEXTS, "😀" * min(length, 2000)])[:length]
    if isinstance(kind, UTCDateTime):
        return choose.choice(TIMES)
    if isinstance(kind, sa.Date):
        return choose.choice(DAYS)
    if isinstance(kind, sa.JSON):
        return choose.choice(JSON)
    raise AssertionError(kind)


def work(connection):
    rows_of = {}
    for table in Base.metadata.sorted_tables:
        unique = {c.name for each in table.constraints if isinstance(each, sa.UniqueConstraint) for c in each.columns}
        unique |= {c.name for c in table.primary_key.columns}
        rows = rows_of[table.name] = []
        for number in range(int(sys.argv[1])):
            row = {}
            for column in table.columns:
                for key in column.foreign_keys:
                    row[column.name] = rows_of[key.column.table.name][number][key.column.name]
                if column.name not in row:
                    row[column.name] = make(column, number, column.name in unique)
                if column.nullable and choose.random() < 0.3:
                    row[column.name] = None
            rows.append(row)
        connection.execute(sa.insert(table), rows)
""".strip(),
)
# Prints each row of each table in a line.
PRINT_ROWS = _FRAME.replace(
    "BODY",
    """
def work(connection):
    for table in Base.metadata.sorted_tables:
        rows = connection.execute(sa.select(table)).all()
        for line in sorted(f"{table.name} {ascii(tuple(row))}" for row in rows):
            print(line)
""".strip(),
)
