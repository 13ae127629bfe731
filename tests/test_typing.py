"""The type checker finds a wrong field name, wherever the service reads or writes one."""

import re
import sys
from pathlib import Path

import pytest

from tests.support.programs import person_environment, run_program
from tests.support.projects import TIMEOUT_SECONDS
from tests.support.template import ROOT, SERVICE

MISTAKES = """\
from uuid import UUID

from sqlalchemy import select

from app.accounts.dependencies import CurrentUser
from app.accounts.models import Caller, User
from app.core.config.settings import Settings
from app.core.context import Context
from app.core.db.query import Query
from app.core.db.session import Session
from app.core.http.pagination import PageRequest
from app.core.http.request import AppRequest
from app.todos.models import Todo, TodoRecord
from app.todos.schemas import TodoCreate, TodoSort
from app.todos.service import create_todo, get_todo, list_todos

EMAILS = Query(select(User.email))


async def mistake(
    user: CurrentUser, caller: Caller, context: Context, session: Session, settings: Settings, request: AppRequest
) -> object:
    todo = await get_todo(session, user.id, UUID(int=0))
    page = await list_todos(session, user.id, sort=TodoSort.NEWEST, completed=None, page=PageRequest())
    email = await session.fetch_value(EMAILS)
    assert email is not None
    return [
        todo.titel,  # 1: a record
        page.items[0].is_completed,  # 2: a record of a list
        page.cursor,  # 3: the list itself
        user.emial,  # 4: the user of a request
        user.session_id,  # 5: a field of the caller, read from the user
        caller.user.username,  # 6: a record in a record
        TodoRecord(id=todo.id, titel="x"),  # 7: the constructor of a record
        context.mailer,  # 8: the context
        settings.database_pol_size,  # 9: the settings
        email.address,  # 10: the value of a query
        Todo.finished,  # 11: a column
        Todo().titel,  # 12: an entity
        request.state.client_adress,  # 13: the state of a request
        await create_todo(session, user.id, TodoCreate(titel="x")),  # 14: the body of a request
    ]
"""


@pytest.mark.slow
def test_wrong_field_names_are_errors_of_mypy(tmp_path: Path) -> None:
    file = tmp_path / "mistakes.py"
    file.write_text(MISTAKES, encoding="utf-8")

    done = run_program(
        [sys.executable, "-m", "mypy", "--config-file=pyproject.toml", str(file)],
        TIMEOUT_SECONDS,
        folder=ROOT / SERVICE,
        env=person_environment(MYPY_CACHE_DIR=str(tmp_path / "cache"), MYPYPATH="."),
    )

    expected = {number for number, line in enumerate(MISTAKES.splitlines(), 1) if re.search(r"  # \d+: ", line)}
    found = {int(number) for number in re.findall(r"mistakes\.py:(\d+): error:", done.stdout)}
    assert len(expected) == 14
    assert found == expected, done.stdout
    assert "error:" not in re.sub(r".*mistakes\.py:\d+: error:.*", "", done.stdout)
