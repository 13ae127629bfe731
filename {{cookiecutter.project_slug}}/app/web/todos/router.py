"""The signed-in user's todos. Delete this folder together with app/todos."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from app.core.dependencies import SessionDep
from app.core.http.pagination import PageDep
from app.todos import service
from app.todos.models import TodoRecord
from app.todos.schemas import TodoCreate, TodoSort, TodoUpdate
from app.web.forms import FieldsDep, redisplay_errors, render_form, validate_form
from app.web.navigation import PageGroup
from app.web.page_context import CurrentUserDep, PageContextDep

LIST, EDIT = "todos/templates/list.html", "todos/templates/edit.html"

router = APIRouter(prefix="/todos")
page_group = PageGroup(router, "/todos", "todos.title")


async def get_own_todo(todo_id: UUID, user: CurrentUserDep, session: SessionDep) -> TodoRecord:
    return await service.get_todo(session, user.id, todo_id)


OwnTodoDep = Annotated[TodoRecord, Depends(get_own_todo)]


@router.get("")
async def show_todos(
    page: PageContextDep, user: CurrentUserDep, session: SessionDep, page_request: PageDep
) -> Response:
    found = await service.list_todos(session, user.id, sort=TodoSort.NEWEST, completed=None, page=page_request)
    return render_form(page, LIST, todos=found.items, next_cursor=found.next_cursor)


@router.post("")
async def add_todo(page: PageContextDep, user: CurrentUserDep, fields: FieldsDep, session: SessionDep) -> Response:
    with redisplay_errors(page, EDIT, fields, todo=None):
        await service.create_todo(session, user.id, validate_form(TodoCreate, fields))
    return page.redirect("/todos", "flash.todo_added")


@router.get("/{todo_id}")
async def show_todo(page: PageContextDep, todo: OwnTodoDep) -> Response:
    return render_form(page, EDIT, {"title": todo.title, "description": todo.description}, todo=todo)


@router.post("/{todo_id}")
async def edit_todo(page: PageContextDep, todo: OwnTodoDep, fields: FieldsDep, session: SessionDep) -> Response:
    """Change the fields that the form has; the list's form has only `completed`."""
    with redisplay_errors(page, EDIT, fields, todo=todo):
        await service.update_todo(session, todo, validate_form(TodoUpdate, fields))
    return page.redirect("/todos", "flash.todo_changed")


@router.post("/{todo_id}/delete")
async def delete_todo(page: PageContextDep, todo: OwnTodoDep, session: SessionDep) -> Response:
    await service.delete_todo(session, todo)
    return page.redirect("/todos", "flash.todo_deleted")
