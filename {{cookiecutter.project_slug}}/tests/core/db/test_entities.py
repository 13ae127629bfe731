"""Records and entities in the same session; docs/database.md quotes the example in this file."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid4

import pytest
from sqlalchemy import ForeignKey, MetaData, String, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from app.core.db import models
from app.core.db.engine import create_owner_engine
from app.core.db.models import IdMixin, TimestampMixin
from app.core.db.query import Command, Query, columns
from app.core.db.session import Database, Session, open_database
from app.core.project import ROOT
from tests.support.databases import make_settings

Way = Callable[[Database], AbstractAsyncContextManager[Session]]
each_way = pytest.mark.parametrize("way", [Database.read, Database.write], ids=["autocommit", "transaction"])


class Base(DeclarativeBase):
    # Separate metadata, because the tables of the service's metadata are compared with the migrations.
    metadata = MetaData(naming_convention=models.Base.metadata.naming_convention)
    type_annotation_map = models.Base.type_annotation_map


class Order(TimestampMixin, Base):
    __tablename__ = "example_orders"

    customer: Mapped[str] = mapped_column(String(100))
    lines: Mapped[list["OrderLine"]] = relationship(
        back_populates="order", cascade="all, delete-orphan", order_by="OrderLine.product"
    )


class OrderLine(IdMixin, Base):
    __tablename__ = "example_order_lines"

    order_id: Mapped[UUID] = mapped_column(ForeignKey("example_orders.id", ondelete="CASCADE"), index=True)
    product: Mapped[str] = mapped_column(String(100))
    price: Mapped[Decimal]
    order: Mapped[Order] = relationship(back_populates="lines")


class LineRecord(NamedTuple):
    product: str
    price: Decimal


ADD_ORDER = Query(insert(Order).returning(Order.id))
ADD_LINE = Command(insert(OrderLine))
LINES_OF_ORDER = Query(
    select(*columns(LineRecord, OrderLine)).where(OrderLine.order_id == bindparam("order")).order_by(OrderLine.product),
    LineRecord,
)
RAISE_PRICE = Command(
    update(OrderLine)
    .where(OrderLine.order_id == bindparam("order"), OrderLine.product == bindparam("name"))
    .values(price=OrderLine.price + bindparam("by", type_=OrderLine.price.type))
)


async def order_with_records(session: Session) -> UUID:
    order_id = await session.fetch_value(ADD_ORDER, customer="Ada")
    assert order_id is not None
    for product, price in {"pen": Decimal("2.50"), "ink": Decimal("9.00")}.items():
        await session.run(ADD_LINE, order_id=order_id, product=product, price=price)
    return order_id


async def total_with_records(session: Session, order_id: UUID) -> Decimal:
    await session.run(RAISE_PRICE, order=order_id, name="pen", by=Decimal("0.50"))
    lines = await session.fetch_all(LINES_OF_ORDER, order=order_id)
    return sum((line.price for line in lines), Decimal(0))


async def order_with_entities(session: Session) -> UUID:
    order = Order(customer="Ada")
    order.lines.append(OrderLine(product="pen", price=Decimal("2.50")))
    order.lines.append(OrderLine(product="ink", price=Decimal("9.00")))
    session.add(order)
    await session.flush()
    return order.id


async def total_with_entities(session: Session, order_id: UUID) -> Decimal:
    order = await session.get_one(Order, order_id, options=[selectinload(Order.lines)])
    for line in order.lines:
        if line.product == "pen":
            line.price += Decimal("0.50")
    return sum((line.price for line in order.lines), Decimal(0))


CUSTOMERS = Query(select(Order.customer))
RENAME_CUSTOMERS = Command(update(Order))


@pytest.fixture
async def database(live_url: str) -> AsyncIterator[Database]:
    settings = make_settings(live_url, database_pool_size=2)
    engine = create_owner_engine(settings)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()
    async with open_database(settings) as database:
        yield database


def test_documentation_page_shows_tested_code() -> None:
    page = (ROOT / "docs" / "database.md").read_text(encoding="utf-8")
    chapter = page.partition("## Records and entities\n")[2].partition("\n## ")[0]
    source = Path(__file__).read_text(encoding="utf-8")

    blocks = re.findall(r"```python\n(.*?)```", chapter, re.DOTALL)

    assert len(blocks) == 3
    for block in blocks:
        assert block in source


@each_way
async def test_records_and_entities_do_the_same(database: Database, way: Way) -> None:
    async with way(database) as session:
        first = await order_with_records(session)
        second = await order_with_entities(session)
    async with database.write() as session:
        totals = [await total_with_records(session, first), await total_with_entities(session, first)]
        totals += [await total_with_entities(session, second), await total_with_records(session, second)]

    assert totals == [Decimal(total) for total in ("12.00", "12.50", "12.00", "12.50")]
    async with database.read() as session:
        for order_id in (first, second):
            lines = await session.fetch_all(LINES_OF_ORDER, order=order_id)
            assert lines == [LineRecord("ink", Decimal("9.00")), LineRecord("pen", Decimal("3.50"))]


@each_way
async def test_typed_statement_sees_entities_that_were_added_changed_and_deleted(database: Database, way: Way) -> None:
    async with way(database) as session:
        order = Order(customer="Ada")
        session.add(order)
        assert await session.fetch_all(CUSTOMERS) == [("Ada",)]
        order.customer = "Bob"
        assert await session.fetch_all(CUSTOMERS) == [("Bob",)]
        await session.delete(order)
        assert await session.fetch_all(CUSTOMERS) == []


@each_way
async def test_statement_can_leave_changes_unflushed(database: Database, way: Way) -> None:
    async with way(database) as session:
        session.add(Order(customer="Ada"))
        with session.no_autoflush:
            assert await session.fetch_all(CUSTOMERS) == []


@each_way
async def test_entity_sees_rows_of_typed_statements(database: Database, way: Way) -> None:
    async with way(database) as session:
        order_id = await order_with_records(session)
        order = await session.get_one(Order, order_id)
        await session.run(RENAME_CUSTOMERS, customer="Bob")
        await session.refresh(order, ["customer", "lines"])

    assert order.customer == "Bob"
    assert [line.product for line in order.lines] == ["ink", "pen"]


@each_way
async def test_entity_has_the_defaults_of_the_mixins(database: Database, way: Way) -> None:
    async with way(database) as session:
        order = Order(customer="Ada")
        session.add(order)
        await session.flush()
        created_at, updated_at = order.created_at, order.updated_at
        order.customer = "Bob"
        await session.commit()

        # Nothing expires at a commit: an expired attribute would be loaded on access, which async code cannot do.
        assert order.id.version == 7
        assert order.created_at == created_at
        assert order.updated_at > updated_at
        await session.refresh(order)
        assert (order.customer, order.created_at) == ("Bob", created_at)


@each_way
async def test_entity_can_be_read_after_session_is_closed_and_closed_session_is_refused(
    database: Database, way: Way
) -> None:
    async with way(database) as session:
        order_id = await order_with_entities(session)
        order = await session.get_one(Order, order_id, options=[selectinload(Order.lines)])

    assert [line.product for line in order.lines] == ["pen", "ink"]
    with pytest.raises(InvalidRequestError, match="closed"):
        await session.get_one(Order, order_id)


async def test_error_rolls_back_records_and_entities(database: Database) -> None:
    async def write_and_fail() -> None:
        async with database.write() as session:
            await order_with_records(session)
            session.add(OrderLine(order_id=uuid4(), product="pen", price=Decimal(1)))

    with pytest.raises(IntegrityError):
        await write_and_fail()

    async with database.read() as session:
        assert await session.fetch_all(CUSTOMERS) == []


async def test_error_in_savepoint_keeps_earlier_writes(database: Database) -> None:
    async def add_line(session: Session) -> None:
        async with session.begin_nested():
            session.add(OrderLine(order_id=uuid4(), product="pen", price=Decimal(1)))

    async with database.write() as session:
        await order_with_records(session)
        with pytest.raises(IntegrityError):
            await add_line(session)
        assert await session.fetch_all(CUSTOMERS) == [("Ada",)]

    async with database.read() as session:
        assert await session.fetch_all(CUSTOMERS) == [("Ada",)]
