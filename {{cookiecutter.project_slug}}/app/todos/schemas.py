from enum import StrEnum

from app.core.http.schemas import MultiLine, NonEmptyLine, PatchModel, RequestModel, TimestampedModel


class TodoSort(StrEnum):
    OLDEST = "created_at"
    NEWEST = "-created_at"


class TodoCreate(RequestModel):
    """A new todo for POST, or the new content of a todo for PUT; omitted fields get their default."""

    title: NonEmptyLine
    description: MultiLine = ""
    completed: bool = False


class TodoUpdate(PatchModel):
    title: NonEmptyLine = ""
    description: MultiLine = ""
    completed: bool = False


class TodoRead(TimestampedModel):
    title: str
    description: str
    completed: bool
