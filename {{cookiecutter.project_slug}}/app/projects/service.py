"""Projects and their expenses. `get_project` checks the owner."""

from collections import defaultdict
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, delete, insert, select, update
from sqlalchemy.orm import selectinload

from app.accounts.quotas import count_rows, require_quota
from app.core.db.query import Command, Query, columns
from app.core.db.session import Session
from app.core.errors import NotFoundError
from app.core.http.pagination import PageRequest, PageResult, paginate
from app.core.http.schemas import changed_fields
from app.files import service as files_service
from app.projects.models import Expense, ExpenseCategory, ExpenseRecord, Project, ProjectRecord
from app.projects.schemas import ExpenseCreate, ExpenseUpdate, ProjectCreate, ProjectReport, ProjectUpdate

NEWEST = "-created_at"

PROJECT_COLUMNS = columns(ProjectRecord, Project)
PROJECT_BY_ID = Query(
    select(*PROJECT_COLUMNS).where(Project.id == bindparam("project"), Project.owner_id == bindparam("owner")),
    ProjectRecord,
)
PROJECT_ROWS = count_rows(select(Project.id).where(Project.owner_id == bindparam("owner")))
CREATE_PROJECT = Query(insert(Project).returning(*PROJECT_COLUMNS), ProjectRecord)
UPDATE_PROJECT = Query(
    update(Project).where(Project.id == bindparam("project")).returning(*PROJECT_COLUMNS), ProjectRecord
)
DELETE_PROJECT = Command(delete(Project).where(Project.id == bindparam("project")))
# Selects a Project entity; selectinload reads its expenses with a second query.
PROJECT_WITH_EXPENSES = (
    select(Project).where(Project.id == bindparam("project")).options(selectinload(Project.expenses))
)

EXPENSE_COLUMNS = columns(ExpenseRecord, Expense)
EXPENSE_BY_ID = Query(
    select(*EXPENSE_COLUMNS).where(Expense.id == bindparam("expense"), Expense.project_id == bindparam("project")),
    ExpenseRecord,
)
EXPENSE_ROWS = count_rows(select(Expense.id).join(Project).where(Project.owner_id == bindparam("owner")))
CREATE_EXPENSE = Query(insert(Expense).returning(*EXPENSE_COLUMNS), ExpenseRecord)
UPDATE_EXPENSE = Query(
    update(Expense).where(Expense.id == bindparam("expense")).returning(*EXPENSE_COLUMNS), ExpenseRecord
)
DELETE_EXPENSE = Command(delete(Expense).where(Expense.id == bindparam("expense")))
# Locks for replacing or deleting receipts: concurrent changes must not leave a file that no expense refers to. Lock
# order: the project, then its expenses.
LOCK_PROJECT = Query(select(Project.id).where(Project.id == bindparam("project")).with_for_update())
LOCK_EXPENSES = Query(select(Expense.id).where(Expense.project_id == bindparam("project")).with_for_update())
DELETE_RECEIPTS = files_service.build_deletion(
    select(Expense.receipt_id).where(Expense.project_id == bindparam("project"))
)
LOCK_EXPENSE = Query(
    select(*EXPENSE_COLUMNS).where(Expense.id == bindparam("expense")).with_for_update(), ExpenseRecord
)


async def get_project(session: Session, owner_id: UUID, project_id: UUID) -> ProjectRecord:
    """Return the owner's project. Raises NotFoundError, also for a project of another user."""
    project = await session.fetch_one_or_none(PROJECT_BY_ID, project=project_id, owner=owner_id)
    if project is None:
        raise NotFoundError("Project not found.", code="project-not-found")
    return project


async def list_projects(session: Session, owner_id: UUID, page: PageRequest) -> PageResult[ProjectRecord]:
    query = _projects_query(after_cursor=page.cursor is not None)
    return page.build(await session.fetch_all(query, owner=owner_id, **page.parameters(NEWEST)), NEWEST)


@cache
def _projects_query(*, after_cursor: bool) -> Query[ProjectRecord]:
    statement: Select[*tuple[Any, ...]] = select(*PROJECT_COLUMNS).where(Project.owner_id == bindparam("owner"))
    return paginate(statement, ProjectRecord, Project, descending=True, after_cursor=after_cursor)


async def create_project(session: Session, owner_id: UUID, data: ProjectCreate) -> ProjectRecord:
    await require_quota(session, PROJECT_ROWS, owner_id)
    return await session.fetch_one(CREATE_PROJECT, owner_id=owner_id, **data.model_dump())


async def update_project(session: Session, project: ProjectRecord, data: ProjectUpdate) -> ProjectRecord:
    changes = changed_fields(data)
    if not changes:
        return project
    changed = await session.fetch_one_or_none(UPDATE_PROJECT, project=project.id, **changes)
    if changed is None:
        # Another request has deleted the project.
        raise NotFoundError("Project not found.", code="project-not-found")
    return changed


async def delete_project(session: Session, project: ProjectRecord) -> None:
    """Delete the project with its expenses and their receipts."""
    await session.fetch_all(LOCK_PROJECT, project=project.id)
    await session.fetch_all(LOCK_EXPENSES, project=project.id)
    await files_service.delete_files(session, DELETE_RECEIPTS, project=project.id)
    await session.run(DELETE_PROJECT, project=project.id)


async def report(session: Session, project_id: UUID) -> ProjectReport:
    """Add up the expenses. Uses entities and their relationship: convenient, but several times slower than records."""
    project = (await session.scalars(PROJECT_WITH_EXPENSES, {"project": project_id})).one_or_none()
    if project is None:
        # Another request has deleted the project.
        raise NotFoundError("Project not found.", code="project-not-found")
    by_category: dict[ExpenseCategory, Decimal] = defaultdict(Decimal)
    for expense in project.expenses:
        by_category[expense.category] += expense.amount
    spent = sum(by_category.values(), Decimal())
    remaining = None if project.budget is None else project.budget - spent
    return ProjectReport(spent=spent, remaining=remaining, by_category=by_category)


async def get_expense(session: Session, project: ProjectRecord, expense_id: UUID) -> ExpenseRecord:
    expense = await session.fetch_one_or_none(EXPENSE_BY_ID, expense=expense_id, project=project.id)
    if expense is None:
        raise NotFoundError("Expense not found.", code="expense-not-found")
    return expense


async def list_expenses(session: Session, project_id: UUID, page: PageRequest) -> PageResult[ExpenseRecord]:
    query = _expenses_query(after_cursor=page.cursor is not None)
    return page.build(await session.fetch_all(query, project=project_id, **page.parameters(NEWEST)), NEWEST)


@cache
def _expenses_query(*, after_cursor: bool) -> Query[ExpenseRecord]:
    statement: Select[*tuple[Any, ...]] = select(*EXPENSE_COLUMNS).where(Expense.project_id == bindparam("project"))
    return paginate(statement, ExpenseRecord, Expense, descending=True, after_cursor=after_cursor)


async def create_expense(
    session: Session, owner_id: UUID, project: ProjectRecord, data: ExpenseCreate
) -> ExpenseRecord:
    await require_quota(session, EXPENSE_ROWS, owner_id)
    return await session.fetch_one(CREATE_EXPENSE, project_id=project.id, **data.model_dump())


async def update_expense(session: Session, expense: ExpenseRecord, data: ExpenseUpdate) -> ExpenseRecord:
    changes = changed_fields(data)
    return await _change_expense(session, expense, **changes) if changes else expense


async def _change_expense(session: Session, expense: ExpenseRecord, **changes: object) -> ExpenseRecord:
    changed = await session.fetch_one_or_none(UPDATE_EXPENSE, expense=expense.id, **changes)
    if changed is None:
        # Another request has deleted the expense.
        raise NotFoundError("Expense not found.", code="expense-not-found")
    return changed


async def delete_expense(session: Session, expense: ExpenseRecord) -> None:
    await _delete_receipt(session, expense)
    await session.run(DELETE_EXPENSE, expense=expense.id)


async def _delete_receipt(session: Session, expense: ExpenseRecord) -> None:
    locked = await session.fetch_one_or_none(LOCK_EXPENSE, expense=expense.id)
    if locked is None:
        # Another request has deleted the expense.
        raise NotFoundError("Expense not found.", code="expense-not-found")
    if locked.receipt_id is not None:
        await files_service.delete_file(session, locked.receipt_id)


async def attach_receipt(session: Session, expense: ExpenseRecord, saved: files_service.SavedObject) -> ExpenseRecord:
    """Keep a saved upload as the expense's receipt, in place of an earlier one."""
    receipt = await files_service.keep(session, saved)
    await _delete_receipt(session, expense)
    return await _change_expense(session, expense, receipt_id=receipt.id)
