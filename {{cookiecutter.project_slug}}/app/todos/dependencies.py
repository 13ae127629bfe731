from typing import Annotated
from uuid import UUID

from fastapi import Depends

from app.accounts.dependencies import CurrentUser
from app.core.dependencies import SessionDep
from app.todos import service
from app.todos.models import TodoRecord


async def get_own_todo(todo_id: UUID, user: CurrentUser, session: SessionDep) -> TodoRecord:
    return await service.get_todo(session, user.id, todo_id)


TodoDep = Annotated[TodoRecord, Depends(get_own_todo)]
