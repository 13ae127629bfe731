"""Makes Alembic write migrations that import nothing from the service, fit tables with rows, and have a downgrade."""

import json
import textwrap
from collections.abc import Iterable, Iterator
from datetime import date, time
from decimal import Decimal
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal
from uuid import UUID

from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import _repr_type
from alembic.operations.ops import (
    AddColumnOp,
    DropTableOp,
    MigrateOperation,
    MigrationScript,
    ModifyTableOps,
    OpContainer,
    UpgradeOps,
)
from alembic.util import CommandError
from sqlalchemy import JSON, Column, DefaultClause, Dialect, Enum, MetaData, TypeDecorator

DOCSTRING_WIDTH = 110
SENTENCE_ENDS = (".", "!", "?")
# Default factories that return an equal value at each call: this value can be the server default.
CONSTANT_FACTORIES = (dict, list)
# Types whose values are written into SQL as text; others, such as bytes, need a server_default in the model.
TEXTUAL = (str, int, float, Decimal, date, time, UUID)

LAST_OF_TEMPLATE = 1000


def render_item(kind: str, item: object, context: AutogenContext) -> str | Literal[False]:
    """Render the service's own types as SQLAlchemy's: a migration must still run after the code has changed."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return _repr_type(item.impl_instance, context)
    if kind == "type" and isinstance(item, Enum) and not item.native_enum:
        return f"sa.String(length={item.length})"
    return False


def docstring(message: str) -> str:
    """Return the message as the contents of a docstring: a sentence with a full stop, wrapped and escaped."""
    words = " ".join(message.split()).replace("\\", "\\\\").replace('"""', r"\"\"\"")
    sentence = words if words.endswith(SENTENCE_ENDS) else f"{words}."
    return textwrap.fill(sentence, DOCSTRING_WIDTH, break_long_words=False, break_on_hyphens=False)


def next_revision(revisions: Iterable[str]) -> str:
    """Return the next number after 1000; revisions that are not numbers are ignored.

    Lower numbers are those of the project's template, which may add migrations later.
    """
    return str(max([LAST_OF_TEMPLATE, *(int(each) for each in revisions if each.isdecimal())]) + 1)


def complete(script: MigrationScript, revisions: Iterable[str], dialect: Dialect) -> None:
    """Number a new migration and make it run on tables with rows; raise CommandError where that is impossible."""
    assert script.upgrade_ops is not None and script.downgrade_ops is not None  # noqa: S101, PT018  # for the type checker: autogenerate fills both
    script.rev_id = next_revision(revisions)
    _drop_tables_last(script.upgrade_ops)
    script.upgrade_ops.reverse_into(script.downgrade_ops)
    for addition in _find_additions(script.upgrade_ops):
        addition.column = _with_server_default(addition.column, dialect)
    for addition in _find_additions(script.downgrade_ops):
        # Make the restored column nullable: its values are lost, and the model no longer has a default for them.
        if _needs_value(addition.column):
            addition.column.nullable = True


def _find_additions(container: OpContainer) -> Iterator[AddColumnOp]:
    for operation in container.ops:
        if isinstance(operation, OpContainer):
            yield from _find_additions(operation)
        elif isinstance(operation, AddColumnOp):
            yield operation


def _drop_tables_last(upgrade: UpgradeOps) -> None:
    """Drop tables after everything that refers to them; Alembic drops them in any order, before the foreign keys."""
    tables = {each.table_name: each.to_table() for each in upgrade.ops if isinstance(each, DropTableOp)}
    references = {
        name: {key.target_fullname.rpartition(".")[0] for key in table.foreign_keys} & tables.keys() - {name}
        for name, table in tables.items()
    }
    # The topological order lists a table after the tables it refers to; drop in the reverse order.
    try:
        order = {name: -at for at, name in enumerate(TopologicalSorter(references).static_order())}
    except CycleError as error:
        raise CommandError(
            f"The tables {', '.join(sorted(tables))} refer to each other: drop their foreign keys in a migration first."
        ) from error

    def position(operation: MigrateOperation) -> tuple[bool, int]:
        # The ModifyTableOps of a dropped table drops its indexes: the stable sort must keep it before the DropTableOp.
        name = operation.table_name if isinstance(operation, DropTableOp | ModifyTableOps) else ""
        return name in order, order.get(name, 0)

    upgrade.ops.sort(key=position)


def _needs_value(column: Column[Any]) -> bool:
    return not column.nullable and column.server_default is None


def _with_server_default(column: Column[Any], dialect: Dialect) -> Column[Any]:
    """Return the column, with the model's default as its server default if it is required and has no server default.

    Existing rows need a value, and so do rows that the previous release inserts after the migration. Raises
    CommandError for a required column that has neither a server default nor a constant default.
    """
    if not _needs_value(column):
        return column
    value = _constant_default(column, dialect)
    if value is None:
        raise CommandError(
            f"{column.table.name}.{column.name} is required, but existing rows have no value for it. Give the column"
            " a constant default. Or make the column nullable, fill existing rows in this migration, and make the"
            " column required in the next migration."
        )
    # Copied, because the column itself belongs to the model.
    copied = column.table.to_metadata(MetaData()).columns[column.name]
    # Quoted, because Alembic strips one quote from each end.
    copied.server_default = DefaultClause(f"'{value}'")
    return copied


def _constant_default(column: Column[Any], dialect: Dialect) -> str | None:
    """Return the model's default as the text of an SQL literal, or None if the column has no constant default.

    An expression does not count as a constant, because SQLite would have to copy the table to add a column with such a
    default.
    """
    default: Any = column.default
    if default is None:
        return None
    if default.is_callable and any(map(default.compare_argument, CONSTANT_FACTORIES)):
        value = default.arg(None)
    elif default.is_scalar:
        value = default.arg
    else:
        return None
    if isinstance(column.type, JSON):
        return json.dumps(value)
    process = column.type.dialect_impl(dialect).bind_processor(dialect)
    literal = process(value) if process else value
    return str(literal) if isinstance(literal, TEXTUAL) else None
