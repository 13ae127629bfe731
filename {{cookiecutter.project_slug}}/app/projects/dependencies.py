from typing import Annotated
from uuid import UUID

from fastapi import Depends

from app.accounts.dependencies import CurrentUser
from app.core.dependencies import DatabaseDep, SessionDep
from app.core.http import uploads
from app.core.http.uploads import Upload
from app.projects import service
from app.projects.models import ExpenseRecord, ProjectRecord

MAX_RECEIPT_BYTES = 10 * 1024 * 1024


async def get_own_project(project_id: UUID, user: CurrentUser, session: SessionDep) -> ProjectRecord:
    return await service.get_project(session, user.id, project_id)


ProjectDep = Annotated[ProjectRecord, Depends(get_own_project)]


async def get_own_expense(expense_id: UUID, project: ProjectDep, session: SessionDep) -> ExpenseRecord:
    return await service.get_expense(session, project, expense_id)


ExpenseDep = Annotated[ExpenseRecord, Depends(get_own_expense)]


async def get_expense_for_upload(
    project_id: UUID, expense_id: UUID, user: CurrentUser, database: DatabaseDep
) -> ExpenseRecord:
    """Load the expense in a separate session.

    The session of a PUT request is a write transaction, which would stay open during the upload.
    """
    async with database.read() as session:
        project = await service.get_project(session, user.id, project_id)
        return await service.get_expense(session, project, expense_id)


UploadExpenseDep = Annotated[ExpenseRecord, Depends(get_expense_for_upload)]
# In a route, declare this parameter after UploadExpenseDep, so that the owner is checked before the file is read.
ReceiptUpload = Annotated[
    Upload,
    uploads.accept(max_bytes=MAX_RECEIPT_BYTES, media_types=("application/pdf", "image/jpeg", "image/png")),
]
