"""FastAPI dependencies of routes: resources that the lifespan has opened, and a request's database session."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends

from app.core.config.settings import Settings
from app.core.db.session import Database, Session
from app.core.errors import UnavailableError
from app.core.http.request import SAFE_METHODS, AppRequest, ClientInfo, read_client_info
from app.core.security.hashing import PasswordHasher
from app.core.storage.objects import ObjectStore
from app.core.storage.store import require_store

if TYPE_CHECKING:
    from httpx2 import AsyncClient


async def get_settings(request: AppRequest) -> Settings:
    return request.state["settings"]


SettingsDep = Annotated[Settings, Depends(get_settings)]


async def get_database(request: AppRequest) -> Database:
    return request.state["database"]


# For work that outlives the request's database session, such as a streamed response or a background task.
DatabaseDep = Annotated[Database, Depends(get_database)]


async def get_session(request: AppRequest) -> AsyncIterator[Session]:
    database = request.state["database"]
    unit_of_work = database.read if request.method in SAFE_METHODS else database.write
    async with unit_of_work() as session:
        yield session


# The scope "function" makes the session commit and end before the response is sent. If the commit fails, the client
# therefore gets an error response.
SessionDep = Annotated[Session, Depends(get_session, scope="function")]


async def get_client_info(request: AppRequest) -> ClientInfo:
    return read_client_info(request)


ClientInfoDep = Annotated[ClientInfo, Depends(get_client_info)]


async def get_password_hasher(request: AppRequest) -> PasswordHasher:
    return request.state["passwords"]


PasswordHasherDep = Annotated[PasswordHasher, Depends(get_password_hasher)]


async def hold_reserved_hash(passwords: PasswordHasherDep) -> AsyncIterator[None]:
    with passwords.reserve():
        yield


# For routes whose service counts an attempt and then hashes a password: if the queue for hashing is full, the request
# is refused before the attempt is counted.
reserve_hash = Depends(hold_reserved_hash, scope="function")


async def get_http_client(request: AppRequest) -> "AsyncClient":
    return await request.state["http"].get()


HttpClientDep = Annotated["AsyncClient", Depends(get_http_client)]


async def get_store(request: AppRequest) -> ObjectStore:
    return require_store(request.state["store"])


StoreDep = Annotated[ObjectStore, Depends(get_store)]


async def _require_mail(settings: SettingsDep) -> None:
    if not settings.sends_mail:
        raise UnavailableError("No mail server is configured.", code="mail-unavailable")


# For routes that depend on e-mail: without a mail server, they respond with 503.
require_mail = Depends(_require_mail)
# The same check as a parameter: placed after the parameter of the caller, the check runs after authentication.
MailDep = Annotated[None, require_mail]
