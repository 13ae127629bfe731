from dataclasses import dataclass

from fastapi import APIRouter


@dataclass(frozen=True)
class PageGroup:
    """Pages that belong together; those with a path are in the menu of signed-in users."""

    router: APIRouter
    path: str | None = None
    # The key of the title in app/web/locales, for the menu.
    title: str = ""
