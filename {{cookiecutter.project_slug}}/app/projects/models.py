from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from app.accounts.models import User
from app.core.db.models import Base, TimestampMixin
from app.files.models import StoredFile


class ProjectStatus(StrEnum):
    PLANNED = "planned"
    ACTIVE = "active"
    FINISHED = "finished"


class ExpenseCategory(StrEnum):
    TRAVEL = "travel"
    MATERIAL = "material"
    OTHER = "other"


class Project(TimestampMixin, Base):
    __tablename__ = "projects"
    # For paginated lists of an owner's projects.
    __table_args__ = (Index(None, "owner_id", "created_at", "id"),)

    owner_id: Mapped[UUID] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[ProjectStatus] = mapped_column(default=ProjectStatus.ACTIVE)
    starts_on: Mapped[date]
    # None means that there is no limit.
    budget: Mapped[Decimal | None]

    # ON DELETE CASCADE deletes the expenses with their project.
    expenses: Mapped[list["Expense"]] = relationship(back_populates="project", passive_deletes=True)


class Expense(TimestampMixin, Base):
    __tablename__ = "expenses"
    # For paginated lists of a project's expenses.
    __table_args__ = (Index(None, "project_id", "created_at", "id"),)

    project_id: Mapped[UUID] = mapped_column(ForeignKey(Project.id, ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(200))
    amount: Mapped[Decimal]
    spent_on: Mapped[date]
    category: Mapped[ExpenseCategory] = mapped_column(default=ExpenseCategory.OTHER)
    note: Mapped[str | None] = mapped_column(Text)
    receipt_id: Mapped[UUID | None] = mapped_column(ForeignKey(StoredFile.id, ondelete="SET NULL"), index=True)

    project: Mapped[Project] = relationship(back_populates="expenses")


class ProjectRecord(NamedTuple):
    """The columns of a project that the service reads."""

    id: UUID
    name: str
    status: ProjectStatus
    starts_on: date
    budget: Decimal | None
    created_at: datetime
    updated_at: datetime


class ExpenseRecord(NamedTuple):
    """The columns of an expense that the service reads."""

    id: UUID
    title: str
    amount: Decimal
    spent_on: date
    category: ExpenseCategory
    note: str | None
    receipt_id: UUID | None
    created_at: datetime
    updated_at: datetime
