from fastapi import APIRouter
from starlette.routing import Match
from starlette.types import Scope


class FeatureRouter(APIRouter):
    """Compares none of its routes with a path that its prefix is no part of; FastAPI tries them all in turn, twice."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if self.prefix in scope["path"] else (Match.NONE, {})
