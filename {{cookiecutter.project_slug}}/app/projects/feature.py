from datetime import date
from decimal import Decimal

from app.accounts.feature import DEMO_EMAIL
from app.accounts.queries import get_user_by_email
from app.core.features import Feature
from app.core.toolbox import Toolbox
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


async def load_sample_data(tools: Toolbox) -> None:
    owner = await get_user_by_email(tools.session, DEMO_EMAIL)
    project = await service.create_project(tools.session, owner.id, PROJECT)
    for expense in EXPENSES:
        await service.create_expense(tools.session, owner.id, project, expense)


feature = Feature(api=router, load_sample_data=load_sample_data)
