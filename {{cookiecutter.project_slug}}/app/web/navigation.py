from dataclasses import dataclass

from fastapi import APIRouter


@dataclass(frozen=True)
class PageGroup:
    """Pages that belong together; those with a path are in the menu of signed-in users."""

    router: APIRouter
    path: str | None = None
    # A key of app/web/locales.
    title: str = ""
