import asyncio
import io
import logging
import math
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import SecretStr

from app.core.config.server import ServerSettings
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.observability.logging import configure_logging
from app.core.upstream.client import UpstreamOptions
from app.weather.settings import WeatherSettings
from tests.support.accounts import Account, create_account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings
from tests.support.proxies import run_proxy, set_proxy
from tests.support.timing import wait_until
from tests.support.upstream_server import Behaviour, UpstreamServer, answer, break_off, hang, in_turn
from tests.support.weather_service import KEY, WEATHER, run_weather_service

PATH = "/api/v1/weather"
LONDON = f"{PATH}?city=London"
ME = "/api/v1/users/me"
FAILS = answer(500, "Something broke")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[UpstreamServer]:
    set_proxy(monkeypatch, "")
    with run_weather_service() as service:
        yield service


def make_weather_settings(service: UpstreamServer, **changes: object) -> WeatherSettings:
    values: dict[str, object] = {
        "weather_api_key": SecretStr(KEY),
        "weather_base_url": service.url,
        # Long time limits, so that a pause of this machine is not taken for a failure of the service.
        "weather_timeout_seconds": 120,
        "weather_connect_timeout_seconds": 20,
        "weather_retry_seconds": 0.01,
    }
    return WeatherSettings(_env_file=None, **{**values, **changes})  # type: ignore[arg-type]  # pydantic validates them


@asynccontextmanager
async def open_weather_client(
    settings: Settings, database: Database | None, service: UpstreamServer, **changes: object
) -> AsyncIterator[tuple[httpx2.AsyncClient, Account]]:
    """A client of an application that calls the test's weather service, and an account that is signed in."""
    app = create_app(settings.join(make_weather_settings(service, **changes)), database)
    async with open_client(app) as client:
        yield client, await create_account(client)


async def test_weather_of_a_place_is_returned(settings: Settings, database: Database, service: UpstreamServer) -> None:
    async with open_weather_client(settings, database, service) as (client, user):
        params = {"city": "London", "state": "Ontario", "country": "ca", "units": "imperial"}
        response = await client.get(PATH, params=params, headers=user.headers)

    assert response.status_code == 200, response.text
    assert response.json() == {
        "city": "London",
        "country": "GB",
        "description": "light drizzle",
        "temperature": 7.2,
        "feels_like": 4.1,
        "humidity": 81,
        "pressure": 1012,
        "wind_speed": 4.1,
        "units": "imperial",
        "observed_at": datetime.fromtimestamp(1485789600, UTC).isoformat().replace("+00:00", "Z"),
        "is_stale": False,
    }
    assert service.queries == [{"q": "London,Ontario,CA", "units": "imperial", "appid": KEY}]
    assert service.paths[0].startswith("/data/2.5/weather?")


FAILURES: dict[str, tuple[Behaviour, int, str]] = {
    "bad-request": (answer(400, {"cod": "400", "message": f"bad {KEY}"}), 400, "invalid-place"),
    "unknown": (answer(404, {"cod": "404", "message": "city not found"}), 404, "place-not-found"),
    "other-json": (answer(200, {"name": "London"}), 502, "upstream-invalid-response"),
    "no-weather": (answer(200, {**WEATHER, "weather": []}), 502, "upstream-invalid-response"),
    "wrong-shape": (answer(200, {**WEATHER, "weather": "rain"}), 502, "upstream-invalid-response"),
    "wrong-type": (answer(200, {**WEATHER, "main": {"temp": "warm"}}), 502, "upstream-invalid-response"),
    "not-a-number": (answer(200, {**WEATHER, "wind": {"speed": math.nan}}), 502, "upstream-invalid-response"),
    "beyond-the-calendar": (answer(200, {**WEATHER, "dt": 10**18}), 502, "upstream-invalid-response"),
    "huge": (answer(200, {**WEATHER, "more": "x" * 100_000}), 502, "upstream-invalid-response"),
    "key-refused": (
        answer(401, {"cod": 401, "message": f"Invalid API key {KEY}"}),
        502,
        "upstream-credentials-refused",
    ),
    "rate-limited": (answer(429, "", Retry_After="7"), 503, "upstream-rate-limited"),
    "failed": (FAILS, 502, "upstream-failed"),
}


@pytest.mark.parametrize(("behaviour", "status", "code"), FAILURES.values(), ids=FAILURES)
async def test_failure_of_the_service_is_a_problem_document(
    settings: Settings,
    database: Database,
    service: UpstreamServer,
    logs: io.StringIO,
    behaviour: Behaviour,
    status: int,
    code: str,
) -> None:
    service.behaviour = behaviour
    async with open_weather_client(settings, database, service) as (client, user):
        response = await client.get(LONDON, headers=user.headers)

    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    if status >= 500:
        assert int(response.headers["retry-after"]) >= 1
    assert KEY not in response.text + logs.getvalue()


def test_settings_reach_the_client() -> None:
    settings = WeatherSettings(
        _env_file=None,
        weather_timeout_seconds=11,
        weather_connect_timeout_seconds=12,
        weather_retry_limit=13,
        weather_retry_seconds=14,
        weather_concurrency=15,
        weather_breaker_failures=16,
        weather_breaker_seconds=17,
    )

    assert settings.upstream_options == UpstreamOptions(
        timeout_seconds=11,
        connect_timeout_seconds=12,
        retry_limit=13,
        retry_seconds=14,
        concurrency=15,
        breaker_failures=16,
        breaker_seconds=17,
    )


async def test_hanging_service_is_answered_with_504(
    settings: Settings, database: Database, service: UpstreamServer
) -> None:
    service.behaviour = hang
    async with open_weather_client(settings, database, service, weather_timeout_seconds=0.3) as (client, user):
        response = await client.get(LONDON, headers=user.headers)

    assert (response.status_code, response.json()["code"]) == (504, "upstream-timeout")
    assert response.headers["retry-after"]


async def test_proxy_of_the_environment_is_used(
    settings: Settings,
    database: Database,
    service: UpstreamServer,
    logs: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with run_proxy(urlsplit(service.url).port or 0) as proxy:
        set_proxy(monkeypatch, proxy.url)
        elsewhere = "http://weather.example.com/data/2.5"
        async with open_weather_client(settings, database, service, weather_base_url=elsewhere) as (client, user):
            response = await client.get(LONDON, headers=user.headers)

    assert response.status_code == 200, response.text
    assert [line.startswith(f"GET {elsewhere}/weather?") for line in proxy.asked] == [True]
    assert service.queries[0]["appid"] == KEY
    assert KEY not in logs.getvalue()


async def test_log_names_the_setting_of_a_refused_key(
    settings: Settings, database: Database, service: UpstreamServer, logs: io.StringIO
) -> None:
    service.behaviour = answer(401, KEY)
    async with open_weather_client(settings, database, service) as (client, user):
        await client.get(LONDON, headers=user.headers)

    assert "WEATHER_API_KEY" in logs.getvalue()


async def test_response_without_a_key_names_the_setting(client: httpx2.AsyncClient, user: Account) -> None:
    response = await client.get(LONDON, headers=user.headers)

    assert response.status_code == 503
    assert "WEATHER_API_KEY" in response.json()["detail"]
    assert response.headers["retry-after"]


def test_note_says_that_the_key_is_missing() -> None:
    assert "WEATHER_API_KEY" in WeatherSettings(_env_file=None, weather_api_key=None).notes[0]
    assert WeatherSettings(_env_file=None, weather_api_key=SecretStr(KEY)).notes == []


async def test_no_log_has_the_key_at_any_level(
    settings: Settings, database: Database, service: UpstreamServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    configure_logging(ServerSettings(_env_file=None, log_format="json", log_level="DEBUG"))
    monkeypatch.setattr(logging.getLogger("httpx2"), "level", logging.DEBUG)
    service.behaviour = in_turn(answer(), FAILS, break_off, answer(401, KEY))

    async with open_weather_client(settings, database, service, weather_retry_limit=0) as (client, user):
        for city in ("London", "Paris", "Rome", "Oslo"):
            await client.get(PATH, params={"city": city}, headers=user.headers)

    assert "outgoing request" in stream.getvalue()
    assert KEY not in stream.getvalue()


@pytest.mark.parametrize(
    ("city", "params"),
    [
        ("a,b", {}),
        ("", {}),
        (" ", {}),
        ("x" * 101, {}),
        ("a\0b", {}),
        ("London", {"country": "GBR"}),
        ("London", {"country": "g,"}),
        ("London", {"state": "a,b"}),
        ("London", {"units": "kelvin"}),
    ],
)
async def test_invalid_place_is_refused_without_a_call(
    settings: Settings, database: Database, service: UpstreamServer, city: str, params: dict[str, str]
) -> None:
    async with open_weather_client(settings, database, service) as (client, user):
        response = await client.get(PATH, params={"city": city, **params}, headers=user.headers)

    assert response.status_code == 422
    assert service.paths == []


@pytest.mark.parametrize(
    "city",
    [
        "São Paulo",
        "東京",
        "İzmir",
        "Gießen",
        "Biel/Bienne",
        "a/../b",
        "//",
        "reports",
        "a\\b",
        "a&appid=other",
        "a#b",
        "a?b",
        "a;b",
        "100%",
        "a%2Fb",
        "a+b",
        "{}",
        "...",
    ],
)
async def test_place_of_any_script_is_sent_unchanged(
    settings: Settings, database: Database, service: UpstreamServer, city: str
) -> None:
    async with open_weather_client(settings, database, service) as (client, user):
        response = await client.get(PATH, params={"city": city}, headers=user.headers)

    assert response.status_code == 200
    assert service.queries == [{"q": city, "units": "metric", "appid": KEY}]


async def test_response_is_cached_by_place_and_units(
    settings: Settings, database: Database, service: UpstreamServer
) -> None:
    async with open_weather_client(settings, database, service) as (client, user):
        answers = [
            await client.get(PATH, params={"city": city, "units": units}, headers=user.headers)
            for city, units in (("London", "metric"), ("LONDON", "metric"), ("London", "imperial"))
        ]

    assert [response.json()["units"] for response in answers] == ["metric", "metric", "imperial"]
    assert len(service.paths) == 2


@pytest.mark.parametrize(("city", "other"), [("Gießen", "Giessen"), ("İzmir", "Izmir")])
async def test_places_that_differ_in_more_than_case_are_different_places(
    settings: Settings, database: Database, service: UpstreamServer, city: str, other: str
) -> None:
    async with open_weather_client(settings, database, service) as (client, user):
        for each in (city, other):
            await client.get(PATH, params={"city": each}, headers=user.headers)

    assert [query["q"] for query in service.queries] == [city, other]


async def test_one_account_cannot_use_up_the_quota_of_the_service(
    settings: Settings, database: Database, service: UpstreamServer
) -> None:
    async with open_weather_client(settings, database, service, weather_requests_per_minute=1) as (client, user):
        other = await create_account(client)
        paris = f"{PATH}?city=Paris"
        asked = [(LONDON, user), (paris, user), (LONDON, user), (paris, other), (paris, user)]
        answers = [await client.get(path, headers=account.headers) for path, account in asked]

    assert [response.status_code for response in answers] == [200, 429, 200, 200, 200]
    assert 0 < int(answers[1].headers["retry-after"]) <= 60
    assert len(service.paths) == 2


async def test_expired_response_is_fetched_again(
    settings: Settings, database: Database, service: UpstreamServer
) -> None:
    async with open_weather_client(settings, database, service, weather_cache_seconds=0) as (client, user):
        for _ in range(2):
            assert (await client.get(LONDON, headers=user.headers)).json()["is_stale"] is False

    assert len(service.paths) == 2


async def test_stale_response_is_returned_while_the_service_fails(
    settings: Settings, database: Database, service: UpstreamServer
) -> None:
    async with open_weather_client(settings, database, service, weather_cache_seconds=0) as (client, user):
        good = (await client.get(LONDON, headers=user.headers)).json()
        service.behaviour = FAILS
        stale = await client.get(LONDON, headers=user.headers)
        service.behaviour = answer(404)
        gone = await client.get(LONDON, headers=user.headers)

    assert stale.status_code == 200
    assert stale.json() == {**good, "is_stale": True}
    assert gone.status_code == 404


async def test_response_beyond_the_stale_time_is_not_returned(
    settings: Settings, database: Database, service: UpstreamServer
) -> None:
    changes = {"weather_cache_seconds": 0, "weather_stale_seconds": 0}
    async with open_weather_client(settings, database, service, **changes) as (client, user):
        await client.get(LONDON, headers=user.headers)
        service.behaviour = FAILS
        response = await client.get(LONDON, headers=user.headers)

    assert response.status_code == 502


async def test_concurrent_requests_for_a_place_are_one_call(live_url: str, service: UpstreamServer) -> None:
    service.behaviour = hang
    async with open_weather_client(make_settings(live_url), None, service) as (client, user):
        asking = [asyncio.create_task(client.get(LONDON, headers=user.headers)) for _ in range(20)]
        await wait_until(lambda: bool(service.paths))
        # These requests take time, in which the other requests finish their queries and begin to wait for the first
        # call.
        for _ in range(3):
            await client.get(ME, headers=user.headers)
        service.released.set()
        answers = await asyncio.gather(*asking)

    assert [response.status_code for response in answers] == [200] * 20
    assert len(service.paths) == 1


async def read_many(client: httpx2.AsyncClient, user: Account, count: int) -> list[httpx2.Response]:
    cities = [f"City {chr(ord('a') + number % 26)}{number}" for number in range(count)]
    return await asyncio.gather(*(client.get(PATH, params={"city": city}, headers=user.headers) for city in cities))


async def test_flood_is_answered_in_time_while_the_service_hangs(live_url: str, service: UpstreamServer) -> None:
    service.behaviour = hang
    # The limit of failures is high, so that the circuit breaker does not open.
    changes = {"weather_concurrency": 3, "weather_timeout_seconds": 0.5, "weather_breaker_failures": 1000}
    async with open_weather_client(make_settings(live_url), None, service, **changes) as (client, user):
        started = time.perf_counter()
        answers = await read_many(client, user, 60)

    assert {response.status_code for response in answers} == {503, 504}
    assert all(response.headers["retry-after"] for response in answers)
    # Without the time limit, hanging calls would last far longer.
    assert time.perf_counter() - started < 20
    assert len(service.paths) < 40


@pytest.mark.parametrize("path", ["/health/live", ME])
async def test_other_routes_stay_as_fast_while_the_service_hangs(
    live_url: str, service: UpstreamServer, path: str
) -> None:
    """Two applications are measured in turns, so that a disturbance of the machine affects both."""
    service.behaviour = hang
    settings, patience = make_settings(live_url), {"weather_timeout_seconds": 240}
    async with (
        open_weather_client(settings, None, service, **patience) as (quiet, quiet_user),
        open_weather_client(settings, None, service, **patience) as (busy, busy_user),
    ):
        flood = [asyncio.create_task(busy.get(f"{LONDON} {i}", headers=busy_user.headers)) for i in range(50)]
        await wait_until(lambda: len(service.paths) >= 10)

        async def measure(client: httpx2.AsyncClient, user: Account) -> float:
            started = time.perf_counter()
            assert (await client.get(path, headers=user.headers)).status_code == 200
            return time.perf_counter() - started

        await measure(busy, busy_user)
        pairs = [(await measure(quiet, quiet_user), await measure(busy, busy_user)) for _ in range(30)]
        still_hangs = not any(task.done() for task in flood)
        service.released.set()
        await asyncio.gather(*flood)

    alone, beside = (statistics.median(side) for side in zip(*pairs, strict=True))
    assert still_hangs
    # A route that waits for the service would take thousands of times as long.
    assert beside < 5 * alone


async def test_shutdown_does_not_wait_for_a_call_that_hangs(
    settings: Settings, database: Database, service: UpstreamServer
) -> None:
    service.behaviour = hang
    before = asyncio.all_tasks()
    async with open_weather_client(settings, database, service) as (client, user):
        asking = asyncio.create_task(client.get(LONDON, headers=user.headers))
        await wait_until(lambda: bool(service.paths))
        started = time.perf_counter()

    assert time.perf_counter() - started < 10
    (outcome,) = await asyncio.gather(asking, return_exceptions=True)
    assert isinstance(outcome, asyncio.CancelledError)
    assert asyncio.all_tasks() == before
