from functools import cache
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Row, Select, bindparam, delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.exceptions import NotFoundError
from app.core.pagination import PageRequest, Slice, paginate
from app.core.schemas import dump_changes
from app.core.statements import prepare
from app.todos.models import Todo
from app.todos.schemas import TodoCreate, TodoSort, TodoUpdate

TodoRow: TypeAlias = Row[*tuple[Any, ...]]

TODO_COLUMNS = (Todo.id, Todo.title, Todo.description, Todo.completed, Todo.created_at, Todo.updated_at)

TODO_BY_ID = prepare(select(*TODO_COLUMNS).where(Todo.id == bindparam("todo_id"), Todo.owner_id == bindparam("owner")))
CREATE_TODO = prepare(insert(Todo).returning(*TODO_COLUMNS))
UPDATE_TODO = prepare(update(Todo).where(Todo.id == bindparam("todo_id")).returning(*TODO_COLUMNS))
DELETE_TODO = prepare(delete(Todo).where(Todo.id == bindparam("todo_id")))


async def get_todo(session: AsyncSession, owner_id: UUID, todo_id: UUID) -> TodoRow:
    """Return the user's todo; someone else's is not found."""
    todo = (await session.execute(TODO_BY_ID, {"todo_id": todo_id, "owner": owner_id})).one_or_none()
    if todo is None:
        raise NotFoundError("There is no such todo.")
    return todo


async def list_todos(
    session: AsyncSession, owner_id: UUID, *, sort: TodoSort, completed: bool | None, page: PageRequest
) -> Slice:
    statement = _list_statement(sort, filtered=completed is not None, continued=page.cursor is not None)
    parameters = {"owner": owner_id, "is_completed": completed, **page.parameters(sort)}
    return page.cut((await session.execute(statement, parameters)).all(), sort)


@cache
def _list_statement(sort: TodoSort, *, filtered: bool, continued: bool) -> Select[*tuple[Any, ...]]:
    statement: Select[*tuple[Any, ...]] = select(*TODO_COLUMNS).where(Todo.owner_id == bindparam("owner"))
    if filtered:
        statement = statement.where(Todo.completed == bindparam("is_completed"))
    return paginate(statement, Todo, descending=sort is TodoSort.NEWEST, continued=continued)


async def create_todo(session: AsyncSession, owner_id: UUID, data: TodoCreate) -> TodoRow:
    return (await session.execute(CREATE_TODO, {"owner_id": owner_id, **data.model_dump()})).one()


async def replace_todo(session: AsyncSession, todo: TodoRow, data: TodoCreate) -> TodoRow:
    return await _change(session, todo, data.model_dump())


async def update_todo(session: AsyncSession, todo: TodoRow, data: TodoUpdate) -> TodoRow:
    changes = dump_changes(data)
    return await _change(session, todo, changes) if changes else todo


async def _change(session: AsyncSession, todo: TodoRow, changes: dict[str, Any]) -> TodoRow:
    changed = (await session.execute(UPDATE_TODO, {"todo_id": todo.id, **changes})).one_or_none()
    if changed is None:
        # Deleted since it was loaded.
        raise NotFoundError("There is no such todo.")
    return changed


async def delete_todo(session: AsyncSession, todo: TodoRow) -> None:
    await session.execute(DELETE_TODO, {"todo_id": todo.id})
