"""Statements that are built once run on the driver's own connection: SQLAlchemy compiles them, and is out of the way.

Through a session of SQLAlchemy's, a query costs several times what its driver needs for it; this way, little more. What
a statement is made of, its types, its errors and how its rows are read stay SQLAlchemy's.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import BindParameter, ColumnElement, Delete, Dialect, Executable, TextClause, delete, select, tuple_
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPIModule
from sqlalchemy.exc import DBAPIError, InvalidRequestError, MultipleResultsFound, NoResultFound
from sqlalchemy.sql.compiler import SQLCompiler

StatementT = TypeVar("StatementT", bound=Executable)
Process = Callable[[Any], Any]

PREPARED = "is_prepared"
ROWS_AT_ONCE = 5000
# Far more than the code names. A statement that is made of a prepared one has its mark, and would stay for ever.
MAX_STATEMENTS = 1000
# PostgreSQL has no code of its own for it (SQLSTATE).
FEATURE_NOT_SUPPORTED = "0A000"


def prepare(statement: StatementT) -> StatementT:
    """Mark a statement that is built once, at module level, with `bindparam`; `Session.execute` takes it the short way.

    It returns columns and no entities, and knows nothing of entities that the session holds. Anywhere else it is a
    statement like any other.
    """
    return statement.execution_options(**{PREPARED: True})


def delete_some(model: Any, *conditions: ColumnElement[bool]) -> Delete:  # noqa: ANN401  # a class of Base
    """Build what deletes a bounded number of rows, so that it ends in time, and none that somebody has locked."""
    keys = model.__table__.primary_key.columns
    # Of its own, for PostgreSQL may run a subquery again and again, and lock other rows each time.
    doomed = select(*keys).where(*conditions).limit(ROWS_AT_ONCE).with_for_update(skip_locked=True).cte("doomed")
    return delete(model).where(tuple_(*keys).in_(select(*doomed.c)))


def is_prepared(statement: Executable) -> bool:
    return PREPARED in statement.get_execution_options()


class Rows(list[Any]):
    """What a prepared statement returned, with SQLAlchemy's verbs for reading it."""

    def all(self) -> Sequence[Any]:
        return self

    def first(self) -> Any:  # noqa: ANN401  # a row has the fields of its statement
        return self[0] if self else None

    def one_or_none(self) -> Any:  # noqa: ANN401  # see above
        if len(self) > 1:
            raise MultipleResultsFound("Multiple rows were found when one or none was required")
        return self.first()

    def one(self) -> Any:  # noqa: ANN401  # see above
        if not self:
            raise NoResultFound("No row was found when one was required")
        return self.one_or_none()

    def scalar_one(self) -> Any:  # noqa: ANN401  # a value of the first column's type
        return self.one()[0]

    def scalar_one_or_none(self) -> Any:  # noqa: ANN401  # see above
        row = self.one_or_none()
        return None if row is None else row[0]

    def scalars(self) -> "Rows":
        return Rows(row[0] for row in self)

    def scalar(self) -> Any:  # noqa: ANN401  # see above
        return self[0][0] if self else None


@dataclass(frozen=True)
class Parameter:
    name: str
    # Gives the value where none was given.
    default: Callable[[], Any]
    # Turns a value into what the driver takes.
    process: Process

    def value(self, given: Mapping[str, Any]) -> object:
        return self.process(given[self.name] if self.name in given else self.default())


class PreparedStatement:
    """What SQLAlchemy knows of a statement: for one database, and one set of names among its parameters."""

    def __init__(self, statement: Any, names: frozenset[str], dialect: Dialect) -> None:  # noqa: ANN401  # no common class of select and insert has both
        compiled: SQLCompiler = statement.compile(dialect=dialect, column_keys=sorted(names))
        # Plain text has columns where `columns` says so.
        columns = [] if isinstance(statement, TextClause) else list(statement.exported_columns)
        self._dialect = dialect
        self._sql = str(compiled)
        self._order = compiled.positiontup
        self._parameters = [_describe(compiled, bind, name) for name, bind in compiled.binds.items()]
        # A named tuple: response models read its attributes three times as fast as those of SQLAlchemy's rows.
        row: Any = namedtuple("Row", [column.key for column in columns], rename=True)  # type: ignore[misc]  # not literal
        self._make_row = row._make
        self._types = [column.type.dialect_impl(dialect) for column in columns]
        # Known with the first answer: they depend on what the database calls its types.
        self._processors: list[tuple[int, Process]] = []
        self._has_answered = False

    async def run(self, connection: DBAPIConnection, given: Mapping[str, Any]) -> "Rows":
        """Raises the error that SQLAlchemy would."""
        values = {parameter.name: parameter.value(given) for parameter in self._parameters}
        try:
            rows = await self._fetch(connection.driver_connection, values)
        except self._dialect.loaded_dbapi.Error as error:
            raise wrap_error(error, self._dialect, self._sql, connection) from error
        if self._processors:
            rows = [self._convert(row) for row in rows]
        return Rows(self._make_row(row) for row in rows)

    async def _fetch(self, driver: Any, values: dict[str, Any]) -> list[Any]:  # noqa: ANN401  # each driver has its own
        if self._order is not None:
            rows: list[Any] = await driver.execute_fetchall(self._sql, [values[name] for name in self._order])
            self._note_types([None] * len(self._types))
            return rows
        cursor = await driver.execute(self._sql, values)
        if not self._has_answered:
            self._note_types([column.type_code for column in cursor.description or ()])
        return await cursor.fetchall() if self._types else []

    def _note_types(self, codes: Sequence[object]) -> None:
        if not self._has_answered:
            pairs = zip(self._types, codes, strict=True)
            found = [type_.result_processor(self._dialect, code) for type_, code in pairs]
            self._processors = [(at, process) for at, process in enumerate(found) if process is not None]
            self._has_answered = True

    def _convert(self, row: Sequence[Any]) -> list[Any]:
        values = list(row)
        for at, process in self._processors:
            values[at] = process(values[at])
        return values


def wrap_error(
    error: DBAPIModule.Error, dialect: Dialect, statement: str = "", connection: DBAPIConnection | None = None
) -> BaseException:
    """Make of a driver's error what SQLAlchemy would; without a connection, none could be opened."""
    return DBAPIError.instance(
        statement,
        None,
        error,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=connection is not None
        and (is_stale(error) or dialect.is_disconnect(error, connection, None)),
        dialect=dialect,
    )


def is_stale(error: BaseException) -> bool:
    """Whether a migration has changed the columns of what the connection has prepared, so that it fails from now on."""
    return getattr(error, "sqlstate", None) == FEATURE_NOT_SUPPORTED and "cached plan" in str(error)


def _describe(compiled: SQLCompiler, bind: BindParameter[Any], name: str) -> Parameter:
    if bind.expanding:
        raise TypeError(f"{name} is a list, which no prepared statement takes")
    process = bind.type.dialect_impl(compiled.dialect).bind_processor(compiled.dialect)
    return Parameter(name, _find_default(compiled, bind, name), process or _pass_on)


def _find_default(compiled: SQLCompiler, bind: BindParameter[Any], name: str) -> Callable[[], Any]:
    """What a column has for a default or at each update, or else the value that the statement was built with."""
    defaults = {column.key: column.default for column in compiled.insert_prefetch}
    defaults |= {column.key: column.onupdate for column in compiled.update_prefetch}
    default: Any = defaults.get(name)
    if default is not None:
        return (lambda: default.arg(None)) if default.is_callable else (lambda: default.arg)
    if bind.required:
        return partial(_refuse, name)
    return lambda: bind.effective_value


def _refuse(name: str) -> object:
    raise InvalidRequestError(f"A value is required for the parameter {name}.")


def _pass_on(value: Any) -> Any:  # noqa: ANN401  # whatever the driver takes as it is
    return value


class PreparedStatements:
    """Those that one database has run."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._found: dict[tuple[Executable, frozenset[str]], PreparedStatement] = {}

    def find(self, statement: Executable, names: frozenset[str]) -> PreparedStatement:
        key = (statement, names)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= MAX_STATEMENTS:
                del self._found[next(iter(self._found))]
            found = self._found[key] = PreparedStatement(statement, names, self._dialect)
        return found
