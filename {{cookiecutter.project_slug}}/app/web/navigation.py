from dataclasses import dataclass

from fastapi import APIRouter


@dataclass(frozen=True)
class PageGroup:
    """Pages that belong together. A group with a path is in the menu of signed-in users."""

    router: APIRouter
    path: str | None = None
    # The key of the title in app/web/locales, for the menu.
    title: str = ""
