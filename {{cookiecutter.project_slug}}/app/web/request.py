from typing import TYPE_CHECKING

from fastapi import Request

from app.core.http.request import State

if TYPE_CHECKING:
    from app.web.pages import Web


class WebState(State):
    web: "Web"


class WebRequest(Request[WebState]):
    """A request with the typed state of the pages."""
