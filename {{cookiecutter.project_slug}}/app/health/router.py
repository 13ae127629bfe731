import asyncio

from fastapi import APIRouter, Response

from app.core.dependencies import SettingsDep
from app.core.errors import UnavailableError
from app.core.http.problems import problem_responses
from app.core.http.request import AppRequest
from app.core.observability.metrics import render_metrics
from app.core.project import read_project
from app.health import service
from app.health.schemas import Health, Liveness, Readiness

router = APIRouter(tags=["health"])


@router.get("/health")
async def read_health() -> Health:
    """Tell which service this is; touches nothing."""
    project = read_project()
    return Health(name=project.name, version=project.version)


@router.get("/health/live")
async def read_liveness() -> Liveness:
    """Tell that the process answers; touches nothing."""
    return Liveness()


@router.get("/health/ready", responses=problem_responses(503))
async def read_readiness(request: AppRequest, settings: SettingsDep) -> Readiness:
    """Tell whether requests can be served: the database answers, its schema is right, and the process goes on."""
    await service.require_ready(request.state["database"], settings.readiness_timeout_seconds)
    # Last: it may be told to stop while the database is asked.
    if request.state["shutdown"].is_set:
        raise UnavailableError("The service is stopping.")
    return Readiness()


@router.get("/metrics", include_in_schema=False)
async def read_metrics() -> Response:
    # In a thread: with many workers it takes a while to add them up.
    return Response(await asyncio.to_thread(render_metrics), media_type="text/plain; version=0.0.4; charset=utf-8")
