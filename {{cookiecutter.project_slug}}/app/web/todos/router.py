"""One's todos. This folder goes when app/todos does."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from app.core.dependencies import SessionDep
from app.core.http.pagination import PageDep
from app.todos import service
from app.todos.models import TodoRecord
from app.todos.schemas import TodoCreate, TodoSort, TodoUpdate
from app.web.forms import FieldsDep, read_fields, show_form, shown_again
from app.web.sections import Section
from app.web.visits import PersonDep, VisitDep

LIST, EDIT = "todos/templates/list.html", "todos/templates/edit.html"

router = APIRouter(prefix="/todos")
section = Section(router, "/todos", "todos.title")


async def get_own_todo(todo_id: UUID, person: PersonDep, session: SessionDep) -> TodoRecord:
    return await service.get_todo(session, person.id, todo_id)


OwnTodoDep = Annotated[TodoRecord, Depends(get_own_todo)]


@router.get("")
async def show_todos(visit: VisitDep, person: PersonDep, session: SessionDep, page: PageDep) -> Response:
    found = await service.list_todos(session, person.id, sort=TodoSort.NEWEST, completed=None, page=page)
    return show_form(visit, LIST, todos=found.items, next_cursor=found.next_cursor)


@router.post("")
async def add_todo(visit: VisitDep, person: PersonDep, fields: FieldsDep, session: SessionDep) -> Response:
    with shown_again(visit, EDIT, fields, todo=None):
        await service.create_todo(session, person.id, read_fields(TodoCreate, fields))
    return visit.go("/todos", "flash.todo_added")


@router.get("/{todo_id}")
async def show_todo(visit: VisitDep, todo: OwnTodoDep) -> Response:
    return show_form(visit, EDIT, {"title": todo.title, "description": todo.description}, todo=todo)


@router.post("/{todo_id}")
async def edit_todo(visit: VisitDep, todo: OwnTodoDep, fields: FieldsDep, session: SessionDep) -> Response:
    """Also ticks: what a form does not have stays as it is."""
    with shown_again(visit, EDIT, fields, todo=todo):
        await service.update_todo(session, todo, read_fields(TodoUpdate, fields))
    return visit.go("/todos", "flash.todo_changed")


@router.post("/{todo_id}/delete")
async def delete_todo(visit: VisitDep, todo: OwnTodoDep, session: SessionDep) -> Response:
    await service.delete_todo(session, todo)
    return visit.go("/todos", "flash.todo_deleted")
