from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from app.core.config import Settings
from app.core.database import Database
from app.core.features import Feature
from app.core.storage import create_store
from app.core.upstream.http_client import LazyHttpClient
from app.files import service


@asynccontextmanager
async def open_store(
    settings: Settings, _database: Database, _http: LazyHttpClient
) -> AsyncIterator[Mapping[str, object]]:
    yield {"store": create_store(settings)}


feature = Feature(lifespan=open_store, purge=service.purge_files, commands="app.files.commands:commands")
