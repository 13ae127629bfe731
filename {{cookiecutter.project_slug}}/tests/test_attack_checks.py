"""The checks of tests/support/attacks.py find the holes of a sample service, and pass for its protected routes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Annotated, Any
from uuid import UUID, uuid4

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request, Response, UploadFile
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.accounts.dependencies import oauth2_scheme
from app.core.http.schemas import RequestModel
from tests.core.http.test_bodies import Everything
from tests.support.accounts import Account
from tests.support.attacks import Operation, Target, check_guard, check_owner, list_owned
from tests.support.clients import open_client

PROJECT = "/projects/{project_id}"
EXPENSES = PROJECT + "/expenses"
EXPENSE = EXPENSES + "/{expense_id}"
RECEIPT = EXPENSE + "/receipt"
OWNED = [
    ("delete", PROJECT),
    ("get", PROJECT),
    ("get", PROJECT + "/categories"),
    ("post", PROJECT + "/categories"),
    ("get", EXPENSES),
    ("post", EXPENSES),
    ("delete", EXPENSE),
    ("get", EXPENSE),
    ("put", EXPENSE),
    ("post", EXPENSE + "/approval"),
    ("delete", RECEIPT),
    ("get", RECEIPT),
    ("put", RECEIPT),
]

Row = dict[str, Any]


class Named(RequestModel):
    name: str


class ExpenseCreate(Everything):
    category_id: UUID


def make_app(*, unowned: Operation | None = None, unbound: Operation | None = None) -> FastAPI:
    """Return a service of projects with expenses and their receipts.

    The operation `unowned` does not check the owner of the project; the operation `unbound` does not check that the
    expense belongs to the project.
    """
    app = FastAPI()
    projects: dict[UUID, Row] = {}
    categories: dict[UUID, Row] = {}
    expenses: dict[UUID, Row] = {}

    def name_operation(request: Request) -> Operation:
        return request.method.lower(), request.scope["route"].path

    def find(rows: dict[UUID, Row], key: UUID, **expected: object) -> Row:
        row = rows.get(key)
        if row is None or any(row[name] != value for name, value in expected.items()):
            raise HTTPException(404)
        return row

    def add(rows: dict[UUID, Row], **values: object) -> Row:
        key = uuid4()
        rows[key] = {"id": key, **values}
        return rows[key]

    def get_user(token: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
        return token.credentials

    User = Annotated[str, Depends(get_user)]  # noqa: N806  # a type, so its name is in capitals

    def get_project(project_id: UUID, user: User, request: Request) -> Row:
        owner = {} if name_operation(request) == unowned else {"owner": user}
        return find(projects, project_id, **owner)

    Project = Annotated[Row, Depends(get_project)]  # noqa: N806  # a type, so its name is in capitals

    def get_expense(expense_id: UUID, project: Project, request: Request) -> Row:
        parent = {} if name_operation(request) == unbound else {"project": project["id"]}
        return find(expenses, expense_id, **parent)

    Expense = Annotated[Row, Depends(get_expense)]  # noqa: N806  # a type, so its name is in capitals

    @app.post("/projects", status_code=201)
    def create_project(data: Named, user: User) -> Row:
        return add(projects, owner=user, **data.model_dump())

    @app.get(PROJECT)
    def read_project(project: Project) -> Row:
        return project

    @app.delete(PROJECT, status_code=204)
    def delete_project(project: Project) -> None:
        del projects[project["id"]]

    # The response has no body, so that the checks must find the item in the list.
    @app.post(PROJECT + "/categories", status_code=204)
    def create_category(data: Named, project: Project) -> None:
        add(categories, project=project["id"], **data.model_dump())

    @app.get(PROJECT + "/categories")
    def list_categories(project: Project) -> list[Row]:
        return [row for row in categories.values() if row["project"] == project["id"]]

    @app.get(EXPENSES)
    def list_expenses(project: Project) -> dict[str, list[Row]]:
        return {"items": [row for row in expenses.values() if row["project"] == project["id"]]}

    @app.post(EXPENSES, status_code=201)
    def create_expense(data: ExpenseCreate, project: Project) -> Row:
        find(categories, data.category_id, project=project["id"])
        return add(expenses, project=project["id"], approved=False, receipt=None, text=data.text)

    @app.get(EXPENSE)
    def read_expense(expense: Expense) -> Row:
        return expense

    @app.put(EXPENSE)
    def replace_expense(data: ExpenseCreate, expense: Expense, project: Project) -> Row:
        find(categories, data.category_id, project=project["id"])
        return expense | {"text": data.text}

    @app.delete(EXPENSE, status_code=204)
    def delete_expense(expense: Expense) -> None:
        del expenses[expense["id"]]

    @app.post(EXPENSE + "/approval")
    def approve_expense(expense: Expense) -> Row:
        if expense["approved"]:
            raise HTTPException(409)
        expense["approved"] = True
        return expense

    @app.put(RECEIPT, status_code=204)
    def upload_receipt(file: UploadFile, expense: Expense) -> None:
        expense["receipt"] = file.file.read().decode()

    @app.get(RECEIPT)
    def read_receipt(expense: Expense) -> Response:
        return Response(expense["receipt"], status_code=404 if expense["receipt"] is None else 200)

    @app.delete(RECEIPT, status_code=204)
    def delete_receipt(expense: Expense) -> None:
        expense["receipt"] = None

    return app


def make_account(name: str) -> Account:
    return Account(name, f"{name}@example.com", name, "")


@asynccontextmanager
async def attack(app: FastAPI, bodies: dict[Operation, object] | None = None) -> AsyncIterator[Target]:
    async with open_client(app) as client:
        yield Target(app.openapi(), client, make_account("admin"), bodies or {})


async def check(target: Target, method: str, path: str) -> None:
    await check_owner(target, method, path, make_account("owner"), [make_account("eve"), make_account("mallory")])


def test_every_operation_on_owned_items_is_attacked() -> None:
    assert sorted(list_owned(make_app().openapi())) == sorted(OWNED)


@pytest.mark.parametrize(("method", "path"), OWNED)
async def test_owner_check_passes_for_protected_route(method: str, path: str) -> None:
    async with attack(make_app()) as target:
        await check(target, method, path)


@pytest.mark.parametrize(("method", "path"), OWNED)
async def test_a_route_that_does_not_compare_the_owner_is_noticed(method: str, path: str) -> None:
    async with attack(make_app(unowned=(method, path))) as target:
        with pytest.raises(AssertionError, match="the item is someone else's"):
            await check(target, method, path)


@pytest.mark.parametrize(("method", "path"), [operation for operation in OWNED if EXPENSE in operation[1]])
async def test_a_route_that_does_not_compare_the_parent_is_noticed(method: str, path: str) -> None:
    async with attack(make_app(unbound=(method, path))) as target:
        with pytest.raises(AssertionError, match="the item is someone else's"):
            await check(target, method, path)


@pytest.mark.parametrize(("method", "path"), OWNED)
async def test_guard_check_passes_for_guarded_route(method: str, path: str) -> None:
    async with attack(make_app()) as target:
        await check_guard(target, method, path, {"Authorization": "Basic eve"})


@pytest.mark.parametrize("scheme", [oauth2_scheme, HTTPBearer()])
async def test_a_route_that_takes_any_token_is_noticed(scheme: Callable[..., Any]) -> None:
    app = FastAPI()
    app.add_api_route("/open", lambda: None, dependencies=[Depends(scheme)])

    async with attack(app) as target:
        with pytest.raises(AssertionError, match=r"^GET /open answers \[401, 200\]"):
            await check_guard(target, "get", "/open", make_account("eve").headers)


class Note(RequestModel):
    currency: str


def make_notes(**behaviour: bool) -> FastAPI:
    """Return a service of notes with the fault that `behaviour` names."""
    app = FastAPI()
    notes: dict[str, str] = {}
    scheme = HTTPBearer()
    Token = Annotated[HTTPAuthorizationCredentials, Depends(scheme)]  # noqa: N806  # a type, so its name is in capitals

    @app.post("/notes")
    def create_note(data: Note, token: Token) -> dict[str, str]:
        if behaviour.get("is_picky") and data.currency != "EUR":
            raise HTTPException(422, "No such currency.")
        notes[note_id := uuid4().hex] = token.credentials
        return {"id": note_id}

    @app.get("/notes/{note_id}")
    def read_note(note_id: str, token: Token) -> str:
        if behaviour.get("is_broken") or notes.get(note_id) != token.credentials:
            raise HTTPException(404, f"{note_id} is unknown." if behaviour.get("is_talkative") else None)
        return note_id

    @app.delete("/notes/{note_id}")
    def delete_note(note_id: str, token: Token) -> None:
        owner = notes.pop(note_id, None) if behaviour.get("is_hasty") else notes.get(note_id)
        if owner != token.credentials:
            raise HTTPException(404)

    return app


async def test_body_refused_by_undocumented_rule_is_reported_with_its_field() -> None:
    async with attack(make_notes(is_picky=True)) as target:
        with pytest.raises(AssertionError, match=r"^POST /notes answers its owner 422 .*currency.* BODIES of tests"):
            await check(target, "get", "/notes/{note_id}")
    async with attack(make_notes(is_picky=True), {("post", "/notes"): {"currency": "EUR"}}) as target:
        await check(target, "get", "/notes/{note_id}")


async def test_body_that_cannot_be_generated_is_reported_with_its_field() -> None:
    app = make_notes()
    app.openapi()["components"]["schemas"]["Note"]["properties"]["currency"]["pattern"] = "^(?=E)[A-Z]{3}$"

    async with attack(app) as target:
        with pytest.raises(AssertionError, match=r"^POST /notes cannot be called: no text is known for currency"):
            await check(target, "get", "/notes/{note_id}")


async def test_id_without_source_is_reported_by_name() -> None:
    app = make_notes()
    app.openapi()["paths"].pop("/notes")

    async with attack(app) as target:
        with pytest.raises(AssertionError, match=r"^/notes makes and lists nothing that has an id, for the note_id"):
            await check(target, "get", "/notes/{note_id}")


async def test_route_that_fails_for_its_owner_is_reported() -> None:
    async with attack(make_notes(is_broken=True)) as target:
        with pytest.raises(AssertionError, match=r"^GET /notes/\{note_id\} answers its owner 404"):
            await check(target, "get", "/notes/{note_id}")


async def test_refusal_after_change_of_item_is_noticed() -> None:
    async with attack(make_notes(is_hasty=True)) as target:
        with pytest.raises(AssertionError, match=r"^GET /notes/\{note_id\} answers its owner 404|changed the item"):
            await check(target, "delete", "/notes/{note_id}")


async def test_a_refusal_that_repeats_the_id_is_noticed() -> None:
    async with attack(make_notes(is_talkative=True)) as target:
        with pytest.raises(AssertionError, match="names an id"):
            await check(target, "get", "/notes/{note_id}")


class Letter(RequestModel):
    enclosed_id: str


async def test_field_is_filled_with_an_item_of_the_collection_that_references_name() -> None:
    app = make_notes()
    letters: dict[str, str] = {}
    Token = Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]  # noqa: N806  # a type, so its name is in capitals

    @app.post("/letters")
    def write_letter(data: Letter, token: Token) -> dict[str, str]:
        letters[data.enclosed_id] = token.credentials
        return {"id": data.enclosed_id}

    @app.get("/letters/{letter_id}")
    def read_letter(letter_id: str, token: Token) -> None:
        if letters.get(letter_id) != token.credentials:
            raise HTTPException(404)

    @app.get("/notes")
    def list_notes() -> list[str]:
        return [*letters]

    async with attack(app) as target:
        await check(replace(target, references={"enclosed_id": "/notes"}), "get", "/letters/{letter_id}")
        enclosed = (await target.client.get("/notes")).json()
        owner = make_account("owner")
        read = [await target.client.get(f"/notes/{each}", headers=owner.headers) for each in enclosed]

    assert 200 in [answer.status_code for answer in read]
