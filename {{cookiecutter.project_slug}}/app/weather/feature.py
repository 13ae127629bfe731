from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from app.core.config import Settings
from app.core.database import Database
from app.core.features import Feature
from app.core.upstream.http_client import LazyHttpClient
from app.weather.client import WeatherClient
from app.weather.router import router
from app.weather.settings import WeatherSettings


@asynccontextmanager
async def open_client(
    settings: Settings, _database: Database, http: LazyHttpClient
) -> AsyncIterator[Mapping[str, object]]:
    client = WeatherClient(settings.of(WeatherSettings), http)
    try:
        yield {"weather": client}
    finally:
        await client.close()


feature = Feature(api=router, settings=WeatherSettings, lifespan=open_client)
