from app.core.dependencies import SettingsDep
from app.core.errors import UnavailableError
from app.core.http.problems import problem_responses
from app.core.http.request import AppRequest
from app.core.http.routing import FeatureRouter
from app.core.project import read_project
from app.health import service
from app.health.schemas import Health, Liveness, Readiness

router = FeatureRouter(prefix="/health", tags=["health"])


@router.get("")
async def read_health() -> Health:
    """Return the name and version of the service; checks nothing."""
    project = read_project()
    return Health(name=project.name, version=project.version)


@router.get("/live")
async def read_liveness() -> Liveness:
    """Liveness: the process responds; checks nothing else."""
    return Liveness()


@router.get("/ready", responses=problem_responses(503))
async def read_readiness(request: AppRequest, settings: SettingsDep) -> Readiness:
    """Readiness: the database is writable, its schema is up to date, and the process is not shutting down."""
    await service.require_ready(request.state["database"], settings.readiness_timeout_seconds)
    # Last, because the shutdown may begin during the check of the database.
    if request.state["shutdown"].is_set:
        raise UnavailableError("The service is stopping.", code="stopping")
    return Readiness()
