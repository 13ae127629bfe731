"""Typed statements: built once at module level, with `bindparam`, and run by the methods of `Session`.

class UserEmail(NamedTuple):
    id: UUID
    email: str

EMAIL_BY_ID = Query(select(*columns(UserEmail, User)).where(User.id == bindparam("user_id")), UserEmail)

user = await session.fetch_one_or_none(EMAIL_BY_ID, user_id=user_id)
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast, overload

from sqlalchemy import ColumnElement, Delete, Dialect, Executable, TextClause, delete, select, tuple_
from sqlalchemy.exc import ArgumentError, InvalidRequestError
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.selectable import TypedReturnsRows

RecordT = TypeVar("RecordT")
ValueT = TypeVar("ValueT")

BATCH_SIZE = 5000


class Statement:
    def __init__(self, statement: Executable) -> None:
        self.statement = statement
        self._checked: set[frozenset[str]] = set()

    def check_names(self, names: frozenset[str], dialect: Dialect) -> None:
        """Raise ArgumentError for a name that is no parameter, and InvalidRequestError for a parameter without a value.

        `run_directly` raises the same errors. SQLAlchemy would ignore an unknown name in a `select`, and would raise
        StatementError for a missing value.
        """
        if names in self._checked:
            return
        compiled = cast(Any, self.statement).compile(dialect=dialect, column_keys=sorted(names))
        if unknown := names - compiled.binds.keys():
            raise ArgumentError(f"Names that are no parameters of the statement: {', '.join(sorted(unknown))}.")
        if missing := {name for name, bind in compiled.binds.items() if bind.required} - names:
            raise InvalidRequestError(f"Parameters without a value: {', '.join(sorted(missing))}.")
        self._checked.add(names)


class Query(Statement, Generic[RecordT]):
    """A statement that returns rows: as instances of `record` or, without a `record`, as tuples of one value."""

    @overload
    def __init__(self: "Query[tuple[ValueT]]", statement: TypedReturnsRows[ValueT]) -> None: ...
    @overload
    def __init__(self, statement: Executable, record: type[RecordT]) -> None: ...
    def __init__(self, statement: Any, record: type[Any] | None = None) -> None:
        """Raise TypeError unless the record's fields are the statement's columns, in the same order."""
        super().__init__(statement)
        self.record = record
        self.make: Callable[[Sequence[Any]], RecordT] = cast(Any, tuple)
        if record is not None:
            _check_fields(record, statement)
            self.make = cast(Any, record)._make


class Command(Statement):
    """A statement that returns no rows; running it returns the number of changed rows."""

    def __init__(self, statement: Executable) -> None:
        """Raise TypeError for a statement that returns rows."""
        if not isinstance(statement, TextClause) and _keys(statement):
            raise TypeError("This statement returns rows, but a Command returns none: use Query.")
        super().__init__(statement)


def columns(
    record: type[Any], model: type[Any], **others: ColumnElement[Any] | InstrumentedAttribute[Any]
) -> list[ColumnElement[Any]]:
    """Return a column for each field of a record: from `others`, or else the model's column of the same name.

    Pass as `others` the columns of other tables, and expressions, by field name. Raises TypeError for a field that is
    neither in `others` nor in the model.
    """
    return [others[name].label(name) if name in others else _column(record, model, name) for name in record._fields]


def _column(record: type[Any], model: type[Any], name: str) -> ColumnElement[Any]:
    attribute = getattr(model, name, None)
    if not isinstance(attribute, InstrumentedAttribute):
        raise TypeError(f"{record.__name__}.{name} is not a column of {model.__name__}.")
    return cast(ColumnElement[Any], attribute)


def delete_batch(model: type[Any], *conditions: ColumnElement[bool]) -> Command:
    """Return a command that deletes at most BATCH_SIZE rows, and skips rows that another transaction has locked."""
    keys = model.__table__.primary_key.columns
    # A CTE, because PostgreSQL may evaluate a plain subquery several times and lock different rows each time.
    batch = select(*keys).where(*conditions).limit(BATCH_SIZE).with_for_update(skip_locked=True).cte("batch")
    statement: Delete = delete(model).where(tuple_(*keys).in_(select(*batch.c)))
    return Command(statement)


def _check_fields(record: type[Any], statement: Executable) -> None:
    if (found := _keys(statement)) != record._fields:
        raise TypeError(
            f"{record.__name__} has the fields {', '.join(record._fields)}, "
            f"but its statement returns {', '.join(found) or 'nothing'}."
        )


def _keys(statement: Executable) -> tuple[str, ...]:
    # Cast to Any, because `select` and `insert` share no class that has `exported_columns`.
    return tuple(column.key for column in cast(Any, statement).exported_columns)
