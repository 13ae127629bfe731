from collections.abc import AsyncIterator, Iterator

import pytest

from app.core.upstream.http_client import LazyHttpClient, open_http_client
from tests.support.proxies import set_proxy
from tests.support.upstream_client import RATES
from tests.support.upstream_server import UpstreamServer, run_upstream_server


@pytest.fixture
def server() -> Iterator[UpstreamServer]:
    with run_upstream_server(RATES) as server:
        yield server


@pytest.fixture
async def http(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LazyHttpClient]:
    set_proxy(monkeypatch, "")
    async with open_http_client(max_connections=100) as http:
        yield http
