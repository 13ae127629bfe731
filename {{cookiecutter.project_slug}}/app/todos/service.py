from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, delete, insert, select, update

from app.accounts.quotas import count_rows, require_quota
from app.core.db.query import Command, Query, columns
from app.core.db.session import Session
from app.core.errors import NotFoundError
from app.core.http.pagination import PageRequest, PageResult, paginate
from app.core.http.schemas import changed_fields
from app.todos.models import Todo, TodoRecord
from app.todos.schemas import TodoCreate, TodoSort, TodoUpdate

COLUMNS = columns(TodoRecord, Todo)

TODO_BY_ID = Query(
    select(*COLUMNS).where(Todo.id == bindparam("todo_id"), Todo.owner_id == bindparam("owner")), TodoRecord
)
ROWS = count_rows(select(Todo.id).where(Todo.owner_id == bindparam("owner")))
CREATE_TODO = Query(insert(Todo).returning(*COLUMNS), TodoRecord)
UPDATE_TODO = Query(update(Todo).where(Todo.id == bindparam("todo_id")).returning(*COLUMNS), TodoRecord)
DELETE_TODO = Command(delete(Todo).where(Todo.id == bindparam("todo_id")))


async def get_todo(session: Session, owner_id: UUID, todo_id: UUID) -> TodoRecord:
    """Return the owner's todo. Raises NotFoundError, also for a todo of another user."""
    todo = await session.fetch_one_or_none(TODO_BY_ID, todo_id=todo_id, owner=owner_id)
    if todo is None:
        raise NotFoundError("Todo not found.", code="todo-not-found")
    return todo


async def list_todos(
    session: Session, owner_id: UUID, *, sort: TodoSort, completed: bool | None, page: PageRequest
) -> PageResult[TodoRecord]:
    query = _list_query(sort, filtered=completed is not None, after_cursor=page.cursor is not None)
    filters = {} if completed is None else {"is_completed": completed}
    return page.build(await session.fetch_all(query, owner=owner_id, **filters, **page.parameters(sort)), sort)


@cache
def _list_query(sort: TodoSort, *, filtered: bool, after_cursor: bool) -> Query[TodoRecord]:
    statement: Select[*tuple[Any, ...]] = select(*COLUMNS).where(Todo.owner_id == bindparam("owner"))
    if filtered:
        statement = statement.where(Todo.completed == bindparam("is_completed"))
    return paginate(statement, TodoRecord, Todo, descending=sort is TodoSort.NEWEST, after_cursor=after_cursor)


async def create_todo(session: Session, owner_id: UUID, data: TodoCreate) -> TodoRecord:
    await require_quota(session, ROWS, owner_id)
    return await session.fetch_one(CREATE_TODO, owner_id=owner_id, **data.model_dump())


async def replace_todo(session: Session, todo: TodoRecord, data: TodoCreate) -> TodoRecord:
    return await _change(session, todo, data.model_dump())


async def update_todo(session: Session, todo: TodoRecord, data: TodoUpdate) -> TodoRecord:
    changes = changed_fields(data)
    return await _change(session, todo, changes) if changes else todo


async def _change(session: Session, todo: TodoRecord, changes: dict[str, Any]) -> TodoRecord:
    changed = await session.fetch_one_or_none(UPDATE_TODO, todo_id=todo.id, **changes)
    if changed is None:
        # Another request has deleted the todo.
        raise NotFoundError("Todo not found.", code="todo-not-found")
    return changed


async def delete_todo(session: Session, todo: TodoRecord) -> None:
    await session.run(DELETE_TODO, todo_id=todo.id)
