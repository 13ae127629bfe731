"""Streamed export of a project's expenses as CSV: memory use does not depend on their number."""

import csv
import io
from collections.abc import AsyncIterator, Iterable
from uuid import UUID

from app.core.db.session import Database
from app.core.http.pagination import PageRequest
from app.projects import service
from app.projects.models import ExpenseRecord

BATCH_SIZE = 500
HEAD = ("spent_on", "title", "amount", "category", "note")
# Spreadsheets evaluate cells that begin with one of these characters.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


async def export_expenses(database: Database, project_id: UUID) -> AsyncIterator[str]:
    """Yield the CSV page by page. No database connection is held while the client receives a page."""
    yield _write([HEAD])
    cursor = None
    while True:
        async with database.read() as session:
            page = await service.list_expenses(session, project_id, PageRequest(BATCH_SIZE, cursor))
        yield _write(map(_to_row, page.items))
        cursor = page.next_cursor
        if cursor is None:
            return


def _to_row(expense: ExpenseRecord) -> tuple[object, ...]:
    note = _neutralise(expense.note or "")
    return expense.spent_on, _neutralise(expense.title), expense.amount, expense.category, note


def _neutralise(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _write(rows: Iterable[tuple[object, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
