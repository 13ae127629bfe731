from datetime import date
from decimal import Decimal

from app.accounts.feature import DEMO_EMAIL
from app.accounts.queries import get_user_by_email
from app.core.context import Context
from app.core.feature import Feature
from app.projects import service
from app.projects.models import ExpenseCategory
from app.projects.router import router
from app.projects.schemas import ExpenseCreate, ProjectCreate

PROJECT = ProjectCreate(name="Office move", starts_on=date(2026, 1, 12), budget=Decimal("5000.00"))
EXPENSES = (
    ExpenseCreate(title="Van", amount=Decimal("420.50"), spent_on=date(2026, 1, 14), category=ExpenseCategory.TRAVEL),
    ExpenseCreate(
        title="Boxes", amount=Decimal("99.90"), spent_on=date(2026, 1, 13), category=ExpenseCategory.MATERIAL
    ),
)


async def load_sample_data(ctx: Context) -> None:
    owner = await get_user_by_email(ctx.session, DEMO_EMAIL)
    project = await service.create_project(ctx.session, owner.id, PROJECT)
    for expense in EXPENSES:
        await service.create_expense(ctx.session, owner.id, project, expense)


feature = Feature(api=router, load_sample_data=load_sample_data)
