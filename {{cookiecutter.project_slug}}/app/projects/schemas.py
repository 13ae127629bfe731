from datetime import date
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import Field

from app.core.schemas import FilledLine, Identified, Input, Output, PartialInput, Text
from app.projects.models import ExpenseCategory, ProjectStatus

# JSON has no decimal type: amounts are strings in responses, and strings or numbers in requests.
Amount = Annotated[Decimal, Field(ge=0, max_digits=12, decimal_places=2)]


class ProjectCreate(Input):
    name: FilledLine
    status: ProjectStatus = ProjectStatus.ACTIVE
    starts_on: date
    budget: Amount | None = None


class ProjectUpdate(PartialInput):
    name: FilledLine = ""
    status: ProjectStatus = ProjectStatus.ACTIVE
    starts_on: date = date.min
    budget: Amount | None = None


class ProjectRead(Identified):
    name: str
    status: ProjectStatus
    starts_on: date
    budget: Decimal | None


class ProjectReport(Output):
    """Expenses in total and by category; `remaining` is null if there is no budget."""

    spent: Decimal
    remaining: Decimal | None
    by_category: dict[ExpenseCategory, Decimal]


class ExpenseCreate(Input):
    title: FilledLine
    amount: Amount
    spent_on: date
    category: ExpenseCategory = ExpenseCategory.OTHER
    note: Text | None = None


class ExpenseUpdate(PartialInput):
    title: FilledLine = ""
    amount: Amount = Decimal(0)
    spent_on: date = date.min
    category: ExpenseCategory = ExpenseCategory.OTHER
    note: Text | None = None


class ExpenseRead(Identified):
    title: str
    amount: Decimal
    spent_on: date
    category: ExpenseCategory
    note: str | None
    receipt_id: UUID | None
