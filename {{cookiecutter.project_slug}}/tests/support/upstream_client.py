"""A client of the upstream server, and its calls."""

import asyncio
from typing import Any

from pydantic import AwareDatetime, BaseModel, FiniteFloat

from app.core.upstream.client import UpstreamClient, UpstreamOptions
from app.core.upstream.http_client import LazyHttpClient
from tests.support.upstream_server import answer

SECRET = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
RATES = {"base": "EUR", "rate": 1.1, "at": 1485789600}
FAILS = answer(500, "Something broke")


class Rates(BaseModel):
    base: str
    rate: FiniteFloat
    at: AwareDatetime


def make_client(base_url: str, http: LazyHttpClient, **changes: Any) -> UpstreamClient:  # noqa: ANN401  # options of several types
    # Long time limits, so that a pause of this machine is not taken for a failure of the upstream.
    patient: dict[str, Any] = {"timeout_seconds": 120, "connect_timeout_seconds": 20, "retry_seconds": 0.01}
    return UpstreamClient("rate service", base_url, http, UpstreamOptions(**{**patient, **changes}))


async def fetch(client: UpstreamClient) -> Rates:
    return await client.get("/latest", Rates)


async def fetch_many(client: UpstreamClient, count: int) -> list[Rates | BaseException]:
    return await asyncio.gather(*(fetch(client) for _ in range(count)), return_exceptions=True)


def type_names(outcomes: list[Rates | BaseException]) -> set[str]:
    return {type(outcome).__name__ for outcome in outcomes}
