from dataclasses import dataclass

from fastapi import APIRouter


@dataclass(frozen=True)
class Section:
    """Pages that belong together; with a path, the menu of who is signed in leads there."""

    router: APIRouter
    path: str | None = None
    # A key of app/web/locales.
    title: str = ""
