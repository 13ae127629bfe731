from enum import StrEnum
from typing import Annotated

from pydantic import StringConstraints

from app.core.schemas import Identified, Input, Line, PartialInput, Text

Title = Annotated[Line, StringConstraints(min_length=1)]


class TodoSort(StrEnum):
    OLDEST = "created_at"
    NEWEST = "-created_at"


class TodoCreate(Input):
    """A whole todo; PUT takes the same, and sets what is left out to its default."""

    title: Title
    description: Text = ""
    completed: bool = False


class TodoUpdate(PartialInput):
    title: Title = ""
    description: Text = ""
    completed: bool = False


class TodoRead(Identified):
    title: str
    description: str
    completed: bool
