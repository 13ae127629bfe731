from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.accounts.dependencies import CurrentUser
from app.core.dependencies import DatabaseDep, SessionDep, StoreDep
from app.core.errors import NotFoundError
from app.core.http.pagination import Page, PageDep, PageResult
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter
from app.files import service as files_service
from app.files.downloads import download
from app.projects import service
from app.projects.dependencies import ExpenseDep, ProjectDep, ReceiptUpload, UploadExpenseDep
from app.projects.export import export_expenses
from app.projects.models import ExpenseRecord, ProjectRecord
from app.projects.schemas import (
    ExpenseCreate,
    ExpenseRead,
    ExpenseUpdate,
    ProjectCreate,
    ProjectRead,
    ProjectReport,
    ProjectUpdate,
)

router = FeatureRouter(prefix="/projects", tags=["projects"])
# A child resource: ProjectDep loads the project of the path, and checks its owner.
expenses = FeatureRouter(prefix="/{project_id}/expenses")


@router.post("", status_code=201, response_model=ProjectRead, responses=problem_responses(401, 403, 409))
async def create_project(
    data: ProjectCreate, user: CurrentUser, session: SessionDep, request: Request, response: Response
) -> ProjectRecord:
    project = await service.create_project(session, user.id, data)
    response.headers["Location"] = f"{request.scope['path']}/{project.id}"
    return project


@router.get("", response_model=Page[ProjectRead], responses=problem_responses(401, 403))
async def list_projects(user: CurrentUser, session: SessionDep, page: PageDep) -> PageResult[ProjectRecord]:
    """List your projects, newest first."""
    return await service.list_projects(session, user.id, page)


@router.get("/{project_id}", response_model=ProjectRead, responses=problem_responses(401, 403, 404))
async def read_project(project: ProjectDep) -> ProjectRecord:
    return project


@router.patch("/{project_id}", response_model=ProjectRead, responses=problem_responses(401, 403, 404))
async def update_project(data: ProjectUpdate, project: ProjectDep, session: SessionDep) -> ProjectRecord:
    """Change only the fields that are sent."""
    return await service.update_project(session, project, data)


@router.delete("/{project_id}", status_code=204, responses=problem_responses(401, 403, 404))
async def delete_project(project: ProjectDep, session: SessionDep) -> None:
    """Delete the project with its expenses and their receipts."""
    await service.delete_project(session, project)


@router.get("/{project_id}/report", responses=problem_responses(401, 403, 404))
async def read_report(project: ProjectDep, session: SessionDep) -> ProjectReport:
    return await service.report(session, project.id)


@router.get("/{project_id}/export", response_class=StreamingResponse, responses=problem_responses(401, 403, 404))
async def export_project(project: ProjectDep, database: DatabaseDep) -> StreamingResponse:
    """Download all expenses of the project as CSV."""
    headers = {"Content-Disposition": 'attachment; filename="expenses.csv"'}
    return StreamingResponse(export_expenses(database, project.id), headers=headers, media_type="text/csv")


@expenses.post("", status_code=201, response_model=ExpenseRead, responses=problem_responses(401, 403, 404, 409))
async def create_expense(
    data: ExpenseCreate,
    user: CurrentUser,
    project: ProjectDep,
    session: SessionDep,
    request: Request,
    response: Response,
) -> ExpenseRecord:
    expense = await service.create_expense(session, user.id, project, data)
    response.headers["Location"] = f"{request.scope['path']}/{expense.id}"
    return expense


@expenses.get("", response_model=Page[ExpenseRead], responses=problem_responses(401, 403, 404))
async def list_expenses(project: ProjectDep, session: SessionDep, page: PageDep) -> PageResult[ExpenseRecord]:
    """List the project's expenses, newest first."""
    return await service.list_expenses(session, project.id, page)


@expenses.get("/{expense_id}", response_model=ExpenseRead, responses=problem_responses(401, 403, 404))
async def read_expense(expense: ExpenseDep) -> ExpenseRecord:
    return expense


@expenses.patch("/{expense_id}", response_model=ExpenseRead, responses=problem_responses(401, 403, 404))
async def update_expense(data: ExpenseUpdate, expense: ExpenseDep, session: SessionDep) -> ExpenseRecord:
    """Change only the fields that are sent."""
    return await service.update_expense(session, expense, data)


@expenses.delete("/{expense_id}", status_code=204, responses=problem_responses(401, 403, 404))
async def delete_expense(expense: ExpenseDep, session: SessionDep) -> None:
    await service.delete_expense(session, expense)


@expenses.put("/{expense_id}/receipt", response_model=ExpenseRead, responses=problem_responses(401, 403, 404, 409))
async def upload_receipt(
    expense: UploadExpenseDep, user: CurrentUser, upload: ReceiptUpload, database: DatabaseDep, store: StoreDep
) -> ExpenseRecord:
    """Attach a receipt: a PDF, JPEG or PNG file of at most 10 MiB. The file replaces an earlier receipt."""
    saved = await files_service.save(
        database, store, user.id, filename=upload.filename, media_type=upload.media_type, chunks=upload.chunks()
    )
    async with database.write() as session:
        return await service.attach_receipt(session, expense, saved)


@expenses.get("/{expense_id}/receipt", response_class=StreamingResponse, responses=problem_responses(401, 403, 404))
async def download_receipt(expense: ExpenseDep, session: SessionDep, store: StoreDep) -> StreamingResponse:
    if expense.receipt_id is None:
        raise NotFoundError("The expense has no receipt.", code="receipt-not-found")
    return await download(store, await files_service.get_file(session, expense.receipt_id))


router.include_router(expenses)
