"""Keyset pagination: pages cost the same at any depth, and inserted rows cause no repeated or skipped items."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Protocol, TypeVar
from uuid import UUID

from fastapi import Depends, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError
from sqlalchemy import Select, bindparam, tuple_

from app.core.db.models import IdMixin, UTCDateTime
from app.core.db.query import Query as TypedQuery
from app.core.errors import UnprocessableError

DEFAULT_LIMIT = 20
MAX_LIMIT = 100

ItemT = TypeVar("ItemT")

Position = TypeAdapter(tuple[str, AwareDatetime, UUID])


class PagedRecord(Protocol):
    @property
    def id(self) -> UUID: ...
    @property
    def created_at(self) -> datetime: ...


PagedT = TypeVar("PagedT", bound=PagedRecord)


class Page(BaseModel, Generic[ItemT]):
    model_config = ConfigDict(from_attributes=True)

    items: list[ItemT]
    next_cursor: str | None


@dataclass(frozen=True)
class PageResult(Generic[PagedT]):
    """The records of one page, as routes return them; FastAPI converts them to a `Page`."""

    items: Sequence[PagedT]
    next_cursor: str | None


@dataclass(frozen=True)
class PageRequest:
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Maximum number of items.")] = DEFAULT_LIMIT
    cursor: Annotated[
        str | None,
        Query(max_length=200, description="`next_cursor` of the previous page; `sort` must not change."),
    ] = None

    def parameters(self, sort: str) -> dict[str, object]:
        """Return the parameters of the query that `paginate` returns.

        Raises UnprocessableError if the cursor is invalid or belongs to another sort.
        """
        # One extra row shows whether there is a next page.
        parameters: dict[str, object] = {"page_limit": self.limit + 1}
        if self.cursor is not None:
            created_at, row_id = _decode_cursor(self.cursor, sort)
            parameters |= {"after_created_at": created_at, "after_id": row_id}
        return parameters

    def build(self, records: Sequence[PagedT], sort: str) -> PageResult[PagedT]:
        if len(records) <= self.limit:
            return PageResult(records, None)
        items = records[: self.limit]
        return PageResult(items, _encode_cursor(sort, items[-1]))


PageDep = Annotated[PageRequest, Depends()]


def paginate(
    statement: Select[*tuple[Any, ...]],
    record: type[PagedT],
    model: type[IdMixin],
    *,
    descending: bool,
    after_cursor: bool,
) -> TypedQuery[PagedT]:
    """Return a query for one page, sorted by creation time; with `after_cursor`, the page starts after the cursor."""
    key = tuple_(model.created_at, model.id)
    if after_cursor:
        position = tuple_(
            bindparam("after_created_at", type_=UTCDateTime()), bindparam("after_id", type_=model.id.type)
        )
        statement = statement.where(key < position if descending else key > position)
    order = (model.created_at.desc(), model.id.desc()) if descending else (model.created_at, model.id)
    return TypedQuery(statement.order_by(*order).limit(bindparam("page_limit")), record)


def _encode_cursor(sort: str, record: PagedRecord) -> str:
    position = Position.dump_json((sort, record.created_at, record.id))
    return base64.urlsafe_b64encode(position).decode().rstrip("=")


def _decode_cursor(cursor: str, sort: str) -> tuple[datetime, UUID]:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        sorted_by, created_at, row_id = Position.validate_json(text)
        created_at = created_at.astimezone(UTC)
    except (binascii.Error, ValidationError, ValueError, OverflowError) as error:
        raise UnprocessableError(
            "The cursor is invalid: use next_cursor of the previous page, or start without a cursor.",
            code="invalid-cursor",
        ) from error
    if sorted_by != sort:
        raise UnprocessableError(
            "The cursor belongs to a list in another order: start without a cursor.", code="cursor-of-another-sort"
        )
    return created_at, row_id
