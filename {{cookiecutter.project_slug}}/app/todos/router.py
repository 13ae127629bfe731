from fastapi import Request, Response

from app.accounts.dependencies import CurrentUser
from app.core.dependencies import SessionDep
from app.core.http.pagination import Page, PageDep, PageResult
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter
from app.todos import service
from app.todos.dependencies import TodoDep
from app.todos.models import TodoRecord
from app.todos.schemas import TodoCreate, TodoRead, TodoSort, TodoUpdate

router = FeatureRouter(prefix="/todos", tags=["todos"])


@router.post("", status_code=201, response_model=TodoRead, responses=problem_responses(401, 403, 409))
async def create_todo(
    data: TodoCreate, user: CurrentUser, session: SessionDep, request: Request, response: Response
) -> TodoRecord:
    todo = await service.create_todo(session, user.id, data)
    response.headers["Location"] = f"{request.scope['path']}/{todo.id}"
    return todo


@router.get("", response_model=Page[TodoRead], responses=problem_responses(401, 403))
async def list_todos(
    user: CurrentUser,
    session: SessionDep,
    page: PageDep,
    sort: TodoSort = TodoSort.NEWEST,
    completed: bool | None = None,
) -> PageResult[TodoRecord]:
    return await service.list_todos(session, user.id, sort=sort, completed=completed, page=page)


@router.get("/{todo_id}", response_model=TodoRead, responses=problem_responses(401, 403, 404))
async def read_todo(todo: TodoDep) -> TodoRecord:
    return todo


@router.put("/{todo_id}", response_model=TodoRead, responses=problem_responses(401, 403, 404))
async def replace_todo(data: TodoCreate, todo: TodoDep, session: SessionDep) -> TodoRecord:
    """Replace the whole todo; omitted fields get their default."""
    return await service.replace_todo(session, todo, data)


@router.patch("/{todo_id}", response_model=TodoRead, responses=problem_responses(401, 403, 404))
async def update_todo(data: TodoUpdate, todo: TodoDep, session: SessionDep) -> TodoRecord:
    """Change only the fields that are sent."""
    return await service.update_todo(session, todo, data)


@router.delete("/{todo_id}", status_code=204, responses=problem_responses(401, 403, 404))
async def delete_todo(todo: TodoDep, session: SessionDep) -> None:
    await service.delete_todo(session, todo)
