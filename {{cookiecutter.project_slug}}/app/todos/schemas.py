from enum import StrEnum

from app.core.schemas import FilledLine, Identified, Input, PartialInput, Text


class TodoSort(StrEnum):
    OLDEST = "created_at"
    NEWEST = "-created_at"


class TodoCreate(Input):
    """A new todo, or a whole one for PUT; omitted fields get their default."""

    title: FilledLine
    description: Text = ""
    completed: bool = False


class TodoUpdate(PartialInput):
    title: FilledLine = ""
    description: Text = ""
    completed: bool = False


class TodoRead(Identified):
    title: str
    description: str
    completed: bool
