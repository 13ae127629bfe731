from datetime import date
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import Field

from app.core.http.schemas import MultiLine, NonEmptyLine, PatchModel, RequestModel, ResponseModel, TimestampedModel
from app.projects.models import ExpenseCategory, ProjectStatus

# JSON has no decimal type: amounts are strings in responses, and strings or numbers in requests.
Amount = Annotated[Decimal, Field(ge=0, max_digits=12, decimal_places=2)]


class ProjectCreate(RequestModel):
    name: NonEmptyLine
    status: ProjectStatus = ProjectStatus.ACTIVE
    starts_on: date
    budget: Amount | None = None


class ProjectUpdate(PatchModel):
    name: NonEmptyLine = ""
    status: ProjectStatus = ProjectStatus.ACTIVE
    starts_on: date = date.min
    budget: Amount | None = None


class ProjectRead(TimestampedModel):
    name: str
    status: ProjectStatus
    starts_on: date
    budget: Decimal | None


class ProjectReport(ResponseModel):
    """Expenses in total and by category; `remaining` is null if there is no budget."""

    spent: Decimal
    remaining: Decimal | None
    by_category: dict[ExpenseCategory, Decimal]


class ExpenseCreate(RequestModel):
    title: NonEmptyLine
    amount: Amount
    spent_on: date
    category: ExpenseCategory = ExpenseCategory.OTHER
    note: MultiLine | None = None


class ExpenseUpdate(PatchModel):
    title: NonEmptyLine = ""
    amount: Amount = Decimal(0)
    spent_on: date = date.min
    category: ExpenseCategory = ExpenseCategory.OTHER
    note: MultiLine | None = None


class ExpenseRead(TimestampedModel):
    title: str
    amount: Decimal
    spent_on: date
    category: ExpenseCategory
    note: str | None
    receipt_id: UUID | None
