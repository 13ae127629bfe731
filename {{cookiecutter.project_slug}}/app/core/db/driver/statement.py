"""Runs statements directly on the driver's connection; SQLAlchemy compiles them, converts values and wraps errors.

SQLAlchemy's session takes several times the driver's CPU time for a statement; this module takes little more than the
driver.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import BindParameter, Dialect, Executable, TextClause
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPIModule
from sqlalchemy.exc import ArgumentError, DBAPIError, InvalidRequestError
from sqlalchemy.sql.compiler import SQLCompiler

from app.core.db.driver.errors import is_unusable_after

Process = Callable[[Any], Any]
T = TypeVar("T")


class StatementResult(NamedTuple):
    rows: list[Any]
    # Number of changed rows; undefined for a statement that returns rows.
    changed: int


@dataclass(frozen=True)
class Parameter:
    name: str
    # Returns the value of a parameter that was not given.
    default: Callable[[], Any]
    # Converts a Python value to the driver's.
    process: Process

    def value(self, given: Mapping[str, Any]) -> object:
        return self.process(given[self.name] if self.name in given else self.default())


class CompiledStatement:
    """A statement, compiled for one kind of database and one set of parameter names."""

    def __init__(self, statement: Executable, names: frozenset[str], dialect: Dialect) -> None:
        """Raise ArgumentError for a parameter that the statement does not have."""
        # Typed as Any, because `select` and `insert` share no class that has both `compile` and `exported_columns`.
        executable: Any = statement
        compiled: SQLCompiler = executable.compile(dialect=dialect, column_keys=sorted(names))
        if unknown := names - compiled.binds.keys():
            raise ArgumentError(f"Names that are no parameters of the statement: {', '.join(sorted(unknown))}.")
        # A plain `text` has no columns; `text(...).columns(...)` is an object of another class.
        columns = [] if isinstance(statement, TextClause) else list(executable.exported_columns)
        # The number of parameters of a list (`IN`) varies between calls: SQLAlchemy has to execute such a statement.
        self.takes_lists = any(bind.expanding for bind in compiled.binds.values())
        self._sql = str(compiled)
        self._order = compiled.positiontup
        self._parameters = [_describe(compiled, bind, name) for name, bind in compiled.binds.items()]
        self._types = [column.type.dialect_impl(dialect) for column in columns]
        # Converters of result columns, by index. They are determined at the first result, because they depend on the
        # types that the database reports.
        self._processors: list[tuple[int, Process]] = []
        self._has_processors = False

    async def run(self, connection: DBAPIConnection, dialect: Dialect, given: Mapping[str, Any]) -> StatementResult:
        """Run the statement with the given values; raise the errors that SQLAlchemy would raise."""
        values = {parameter.name: parameter.value(given) for parameter in self._parameters}
        try:
            result = await self._execute(connection.driver_connection, dialect, values)
        except dialect.loaded_dbapi.Error as error:
            raise wrap_error(error, dialect, self._sql, connection) from error
        if self._processors:
            return StatementResult([self._convert(row) for row in result.rows], result.changed)
        return result

    async def _execute(self, driver: Any, dialect: Dialect, values: dict[str, Any]) -> StatementResult:  # noqa: ANN401  # psycopg and aiosqlite share no base class
        if self._order is None:
            cursor = await driver.execute(self._sql, values)
            if not self._has_processors:
                self._find_processors(dialect, [column.type_code for column in cursor.description or ()])
            return StatementResult(await cursor.fetchall() if self._types else [], cursor.rowcount)
        ordered = [values[name] for name in self._order]
        if self._types:
            rows = await driver.execute_fetchall(self._sql, ordered)
            if not self._has_processors:
                self._find_processors(dialect, [None] * len(self._types))
            return StatementResult(rows, -1)
        async with driver.execute(self._sql, ordered) as cursor:
            changed = cursor.rowcount
        if self._sql.startswith("WITH"):
            # sqlite3 does not count the rows of a statement that begins with a CTE.
            ((changed,),) = await driver.execute_fetchall("SELECT changes()")
        return StatementResult([], changed)

    def _find_processors(self, dialect: Dialect, codes: Sequence[object]) -> None:
        pairs = zip(self._types, codes, strict=True)
        found = [type_.result_processor(dialect, code) for type_, code in pairs]
        self._processors = [(index, process) for index, process in enumerate(found) if process is not None]
        self._has_processors = True

    def _convert(self, row: Sequence[Any]) -> list[Any]:
        values = list(row)
        for index, process in self._processors:
            values[index] = process(values[index])
        return values


def wrap_error(
    error: DBAPIModule.Error, dialect: Dialect, statement: str = "", connection: DBAPIConnection | None = None
) -> BaseException:
    """Return the driver's error as SQLAlchemy's; `connection` is None if no connection could be opened."""
    return DBAPIError.instance(
        statement,
        None,
        error,
        dialect.loaded_dbapi.Error,
        hide_parameters=True,
        connection_invalidated=connection is not None
        and (is_unusable_after(error) or dialect.is_disconnect(error, connection, None)),
        dialect=dialect,
    )


def _describe(compiled: SQLCompiler, bind: BindParameter[Any], name: str) -> Parameter:
    process = bind.type.dialect_impl(compiled.dialect).bind_processor(compiled.dialect)
    return Parameter(name, _find_default(compiled, bind, name), process or _identity)


def _find_default(compiled: SQLCompiler, bind: BindParameter[Any], name: str) -> Callable[[], Any]:
    """Return the function that provides a parameter's value if the caller gives none.

    The value is the column's `default` or `onupdate`, or else the one in the statement. For a required parameter, the
    function raises InvalidRequestError.
    """
    defaults = {column.key: column.default for column in compiled.insert_prefetch}
    defaults |= {column.key: column.onupdate for column in compiled.update_prefetch}
    default: Any = defaults.get(name)
    if default is not None:
        return (lambda: default.arg(None)) if default.is_callable else (lambda: default.arg)
    if bind.required:
        return partial(_refuse, name)
    return lambda: bind.effective_value


def _refuse(name: str) -> object:
    raise InvalidRequestError(f"Parameters without a value: {name}.")


def _identity(value: T) -> T:
    return value
