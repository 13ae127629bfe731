import asyncio
import io
import json
import logging
import math
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from pydantic import SecretStr

from app.application import create_app
from app.core.config import ServerSettings, Settings
from app.core.db.session import Database
from app.core.observability.logging import configure_logging
from app.weather.breaker import Breaker
from app.weather.cache import Cache
from app.weather.exceptions import BadAnswerError, BusyError, NotAskedError
from app.weather.settings import WeatherSettings
from tests.support.accounts import Account, create_account
from tests.support.clients import open_client
from tests.support.databases import make_settings
from tests.support.outgoing import Outgoing
from tests.support.proxies import run_proxy, set_proxy
from tests.support.sockets import hold_port
from tests.support.weather_service import (
    KEY,
    WEATHER,
    Behaviour,
    WeatherService,
    answer,
    break_off,
    drip,
    hang,
    hang_up,
    in_turn,
    never_end,
    run_weather_service,
)

PATH = "/api/v1/weather"
LONDON = f"{PATH}?city=London"
ME = "/api/v1/users/me"
FAILS = answer(500, "Something broke")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[WeatherService]:
    set_proxy(monkeypatch, "")
    with run_weather_service() as service:
        yield service


def make_weather_settings(service: WeatherService, **changes: object) -> WeatherSettings:
    values: dict[str, object] = {
        "weather_api_key": SecretStr(KEY),
        "weather_base_url": service.url,
        # A machine that pauses is no failure of the service that is asked.
        "weather_timeout_seconds": 120,
        "weather_connect_timeout_seconds": 20,
        "weather_retry_seconds": 0.01,
    }
    return WeatherSettings(_env_file=None, **{**values, **changes})  # type: ignore[arg-type]  # pydantic validates them


@asynccontextmanager
async def open_weather_client(
    settings: Settings, database: Database | None, service: WeatherService, **changes: object
) -> AsyncIterator[tuple[httpx2.AsyncClient, Account]]:
    """A client of a service that asks the test's own weather service, and one who is signed in."""
    app = create_app(settings.join(make_weather_settings(service, **changes)), database)
    async with open_client(app) as client:
        yield client, await create_account(client)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


async def test_the_weather_of_a_place_is_told(settings: Settings, database: Database, service: WeatherService) -> None:
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


FAILURES: dict[str, tuple[Behaviour, int, int]] = {
    "bad-request": (answer(400, {"cod": "400", "message": f"bad {KEY}"}), 400, 1),
    "unknown": (answer(404, {"cod": "404", "message": "city not found"}), 404, 1),
    "no-json": (answer(200, "<html>"), 502, 1),
    "empty": (answer(200, ""), 502, 1),
    "other-json": (answer(200, {"name": "London"}), 502, 1),
    "no-weather": (answer(200, {**WEATHER, "weather": []}), 502, 1),
    "wrong-type": (answer(200, {**WEATHER, "main": {**WEATHER["main"], "temp": "warm"}}), 502, 1),  # type: ignore[dict-item]
    "not-a-number": (answer(200, {**WEATHER, "wind": {"speed": math.nan}}), 502, 1),
    "beyond-the-calendar": (answer(200, {**WEATHER, "dt": 10**18}), 502, 1),
    "deep": (answer(200, "[" * 20_000), 502, 1),
    "not-utf-8": (answer(200, json.dumps(WEATHER).replace("London", "\\ud800")), 502, 1),
    "packed": (answer(200, WEATHER, Content_Encoding="gzip"), 200, 1),
    "huge": (answer(200, {**WEATHER, "more": "x" * 100_000}), 502, 1),
    "endless": (never_end, 502, 1),
    "elsewhere": (answer(302, "", Location="http://127.0.0.1:1/"), 502, 1),
    "key-refused": (answer(401, {"cod": 401, "message": f"Invalid API key {KEY}"}), 502, 1),
    "forbidden": (answer(403, ""), 502, 1),
    "teapot": (answer(418, ""), 502, 1),
    "too-many": (answer(429, "", Retry_After="7"), 503, 1),
    "failed": (FAILS, 502, 3),
    "unavailable": (answer(503, "", Retry_After="7"), 502, 3),
    "broken-off": (break_off, 502, 3),
    "hung-up": (hang_up, 502, 3),
}


@pytest.mark.parametrize(("behaviour", "status", "attempts"), FAILURES.values(), ids=FAILURES)
async def test_what_goes_wrong_there_is_a_clear_problem(
    settings: Settings,
    database: Database,
    service: WeatherService,
    logs: io.StringIO,
    behaviour: Behaviour,
    status: int,
    attempts: int,
) -> None:
    service.behaviour = behaviour
    async with open_weather_client(settings, database, service) as (client, user):
        response = await client.get(LONDON, headers=user.headers)

    assert response.status_code == status, response.text
    assert len(service.paths) == attempts
    if status >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["detail"]
    if status >= 500:
        assert int(response.headers["retry-after"]) >= 1
    assert KEY not in response.text + logs.getvalue()


@pytest.mark.parametrize("behaviour", [hang, drip], ids=lambda behaviour: behaviour.__name__)
async def test_who_does_not_answer_in_time_is_waited_for_no_longer(
    settings: Settings, database: Database, service: WeatherService, behaviour: Behaviour
) -> None:
    service.behaviour = behaviour
    async with open_weather_client(settings, database, service, weather_timeout_seconds=0.3) as (client, user):
        started = time.perf_counter()
        response = await client.get(LONDON, headers=user.headers)

    assert response.status_code == 504
    assert response.headers["retry-after"]
    assert 0.3 <= time.perf_counter() - started < 20
    # On a machine that pauses the time is over before the question arrives.
    assert len(service.paths) <= 1


async def test_the_time_limit_is_that_of_all_attempts(
    settings: Settings, database: Database, service: WeatherService
) -> None:
    service.behaviour = FAILS
    changes = {"weather_timeout_seconds": 3, "weather_retry_limit": 1000, "weather_breaker_failures": 1000}
    async with open_weather_client(settings, database, service, **changes) as (client, user):
        started = time.perf_counter()
        response = await client.get(LONDON, headers=user.headers)

    # The time may be up between two attempts or during one.
    assert response.status_code in {502, 504}
    assert time.perf_counter() - started < 20
    assert 2 <= len(service.paths) < 20


async def test_nobody_at_the_address_is_a_503(
    settings: Settings, database: Database, service: WeatherService, logs: io.StringIO
) -> None:
    with hold_port() as held:
        port = held.getsockname()[1]
        nowhere = f"http://127.0.0.1:{port}"
        async with open_weather_client(settings, database, service, weather_base_url=nowhere) as (client, user):
            response = await client.get(LONDON, headers=user.headers)

    assert response.status_code == 503
    assert response.headers["retry-after"]
    # The identifier of the request may hold any digits.
    assert str(port) not in response.json()["detail"]
    assert "Connect call failed" in logs.getvalue()


async def test_a_proxy_of_the_environment_is_used(
    settings: Settings,
    database: Database,
    service: WeatherService,
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


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (httpx2.ConnectError("[Errno -2] Name or service not known"), 503, "ConnectError"),
        (httpx2.ProxyError("407 Proxy Authentication Required"), 503, "ProxyError"),
        (httpx2.ReadTimeout(""), 504, "ReadTimeout"),
        (httpx2.RemoteProtocolError(f"illegal status line: {KEY}"), 502, "RemoteProtocolError"),
    ],
)
async def test_the_log_says_why_the_service_failed(
    settings: Settings,
    database: Database,
    outgoing: Outgoing,
    logs: io.StringIO,
    error: Exception,
    status: int,
    cause: str,
) -> None:
    outgoing.fail("GET", "https://api.openweathermap.org/data/2.5/weather", error)
    own = WeatherSettings(_env_file=None, weather_api_key=SecretStr(KEY), weather_retry_limit=0)
    app = create_app(settings.join(own), database, outgoing.transport)
    async with open_client(app) as client:
        user = await create_account(client)
        response = await client.get(LONDON, headers=user.headers)

    lines = [json.loads(line) for line in logs.getvalue().splitlines()]
    assert response.status_code == status
    assert [line["cause"] for line in lines if line["event"] == "the weather service failed"] == [cause]
    assert KEY not in response.text + logs.getvalue()


async def test_the_log_says_that_the_key_is_refused(
    settings: Settings, database: Database, service: WeatherService, logs: io.StringIO
) -> None:
    service.behaviour = answer(401, KEY)
    async with open_weather_client(settings, database, service) as (client, user):
        await client.get(LONDON, headers=user.headers)

    assert "WEATHER_API_KEY" in logs.getvalue()


async def test_a_failure_that_passes_is_not_noticed(
    settings: Settings, database: Database, service: WeatherService
) -> None:
    service.behaviour = in_turn(FAILS, break_off, answer())
    async with open_weather_client(settings, database, service) as (client, user):
        response = await client.get(LONDON, headers=user.headers)

    assert response.status_code == 200
    assert len(service.paths) == 3


async def test_without_a_key_the_answer_names_the_setting(client: httpx2.AsyncClient, user: Account) -> None:
    response = await client.get(LONDON, headers=user.headers)

    assert response.status_code == 503
    assert "WEATHER_API_KEY" in response.json()["detail"]
    assert response.headers["retry-after"]


def test_a_note_says_that_the_key_is_missing() -> None:
    assert "WEATHER_API_KEY" in WeatherSettings(_env_file=None, weather_api_key=None).notes[0]
    assert WeatherSettings(_env_file=None, weather_api_key=SecretStr(KEY)).notes == []


async def test_no_log_has_the_key_at_any_level(
    settings: Settings, database: Database, service: WeatherService, monkeypatch: pytest.MonkeyPatch
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
async def test_a_place_that_makes_no_sense_is_refused_unasked(
    settings: Settings, database: Database, service: WeatherService, city: str, params: dict[str, str]
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
async def test_a_place_of_any_script_is_asked_for_as_it_is(
    settings: Settings, database: Database, service: WeatherService, city: str
) -> None:
    async with open_weather_client(settings, database, service) as (client, user):
        response = await client.get(PATH, params={"city": city}, headers=user.headers)

    assert response.status_code == 200
    assert service.queries == [{"q": city, "units": "metric", "appid": KEY}]


async def test_an_answer_is_kept_for_a_while(settings: Settings, database: Database, service: WeatherService) -> None:
    async with open_weather_client(settings, database, service) as (client, user):
        answers = [
            await client.get(PATH, params={"city": city, "units": units}, headers=user.headers)
            for city, units in (("London", "metric"), ("LONDON", "metric"), ("London", "imperial"))
        ]

    assert [response.json()["units"] for response in answers] == ["metric", "metric", "imperial"]
    assert len(service.paths) == 2


@pytest.mark.parametrize(("city", "other"), [("Gießen", "Giessen"), ("İzmir", "Izmir")])
async def test_places_that_differ_in_more_than_capitals_are_different_places(
    settings: Settings, database: Database, service: WeatherService, city: str, other: str
) -> None:
    async with open_weather_client(settings, database, service) as (client, user):
        for each in (city, other):
            await client.get(PATH, params={"city": each}, headers=user.headers)

    assert [query["q"] for query in service.queries] == [city, other]


async def test_an_answer_that_is_too_old_is_asked_for_again(
    settings: Settings, database: Database, service: WeatherService
) -> None:
    async with open_weather_client(settings, database, service, weather_cache_seconds=0) as (client, user):
        for _ in range(2):
            assert (await client.get(LONDON, headers=user.headers)).json()["is_stale"] is False

    assert len(service.paths) == 2


async def test_an_old_answer_stands_in_when_the_service_fails(
    settings: Settings, database: Database, service: WeatherService
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


async def test_an_answer_that_is_older_still_is_of_no_use(
    settings: Settings, database: Database, service: WeatherService
) -> None:
    changes = {"weather_cache_seconds": 0, "weather_stale_seconds": 0}
    async with open_weather_client(settings, database, service, **changes) as (client, user):
        await client.get(LONDON, headers=user.headers)
        service.behaviour = FAILS
        response = await client.get(LONDON, headers=user.headers)

    assert response.status_code == 502


async def test_many_who_ask_for_one_place_are_one_question(live_url: str, service: WeatherService) -> None:
    service.behaviour = hang
    async with open_weather_client(make_settings(live_url), None, service) as (client, user):
        asking = [asyncio.create_task(client.get(LONDON, headers=user.headers)) for _ in range(20)]
        await wait_until(lambda: bool(service.paths))
        # The others have asked the database by then, and wait.
        for _ in range(3):
            await client.get(ME, headers=user.headers)
        service.released.set()
        answers = await asyncio.gather(*asking)

    assert [response.status_code for response in answers] == [200] * 20
    assert len(service.paths) == 1


async def test_who_gives_up_takes_the_answer_from_nobody() -> None:
    cache = Cache[str](60, 60, 10)
    ready = asyncio.Event()
    asked = []

    async def ask() -> str:
        asked.append("once")
        await ready.wait()
        return "sunny"

    waiting = [asyncio.create_task(cache.get("London", ask)) for _ in range(100)]
    await wait_until(lambda: bool(asked))
    waiting[0].cancel()
    await asyncio.sleep(0)
    ready.set()
    answers = await asyncio.gather(*waiting[1:])

    assert asked == ["once"]
    assert {answer.value for answer in answers} == {"sunny"}


async def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    cache = Cache[str](60, 60, 2)
    asked = []

    async def ask_for(city: str) -> str:
        asked.append(city)
        return city

    for city in ("a", "b", "a", "c", "a", "b"):
        await cache.get(city, lambda city=city: ask_for(city))  # type: ignore[misc]  # mypy infers no default of a lambda

    assert asked == ["a", "b", "c", "b"]


async def test_after_failures_in_a_row_the_service_is_given_a_pause(
    settings: Settings, database: Database, service: WeatherService
) -> None:
    service.behaviour = FAILS
    changes = {"weather_breaker_failures": 3, "weather_breaker_seconds": 60, "weather_retry_limit": 0}
    async with open_weather_client(settings, database, service, **changes) as (client, user):
        answers = [await client.get(LONDON, headers=user.headers) for _ in range(6)]

    assert [response.status_code for response in answers] == [502, 502, 502, 503, 503, 503]
    assert 50 < int(answers[-1].headers["retry-after"]) <= 60
    assert len(service.paths) == 3


async def test_after_the_pause_one_question_decides(
    settings: Settings, database: Database, service: WeatherService, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr("app.weather.breaker.time", Clock)
    service.behaviour = in_turn(FAILS, FAILS, answer())
    changes = {"weather_breaker_failures": 1, "weather_breaker_seconds": 60, "weather_retry_limit": 0}
    statuses: dict[int, int] = {}
    async with open_weather_client(settings, database, service, **changes) as (client, user):
        for now[0] in (0, 59, 60, 119, 120):
            statuses[now[0]] = (await client.get(LONDON, headers=user.headers)).status_code

    assert statuses == {0: 502, 59: 503, 60: 502, 119: 503, 120: 200}
    assert len(service.paths) == 3


async def test_a_service_that_asks_for_a_pause_gets_it(
    settings: Settings, database: Database, service: WeatherService
) -> None:
    service.behaviour = answer(429, "", Retry_After="120")
    async with open_weather_client(settings, database, service) as (client, user):
        answers = [await client.get(LONDON, headers=user.headers) for _ in range(3)]

    assert [response.status_code for response in answers] == [503, 503, 503]
    assert all(110 < int(response.headers["retry-after"]) <= 120 for response in answers)
    assert len(service.paths) == 1


async def test_a_place_that_is_not_known_is_no_failure(
    settings: Settings, database: Database, service: WeatherService
) -> None:
    service.behaviour = answer(404)
    async with open_weather_client(settings, database, service, weather_breaker_failures=1) as (client, user):
        answers = [await client.get(LONDON, headers=user.headers) for _ in range(3)]

    assert [response.status_code for response in answers] == [404, 404, 404]


def fail(breaker: Breaker) -> None:
    with pytest.raises(BadAnswerError), breaker.guard():
        raise BadAnswerError("no")


def test_only_one_call_tries_after_the_pause() -> None:
    breaker = Breaker(failures=1, seconds=0)
    fail(breaker)

    with breaker.guard(), pytest.raises(NotAskedError), breaker.guard():
        pass

    with breaker.guard(), breaker.guard():
        pass
    assert not breaker.is_open


def test_a_call_that_is_given_up_says_nothing() -> None:
    breaker = Breaker(failures=1, seconds=0)
    fail(breaker)

    with pytest.raises(asyncio.CancelledError), breaker.guard():
        raise asyncio.CancelledError

    assert breaker.is_open
    with breaker.guard():
        pass
    assert not breaker.is_open


def test_a_success_between_failures_starts_the_count_afresh() -> None:
    breaker = Breaker(failures=2, seconds=60)

    fail(breaker)
    with breaker.guard():
        pass
    fail(breaker)
    assert not breaker.is_open
    with pytest.raises(BusyError), breaker.guard():
        raise BusyError("later", 60)

    assert breaker.is_open


async def ask_for_many(client: httpx2.AsyncClient, user: Account, count: int) -> list[httpx2.Response]:
    cities = [f"City {chr(ord('a') + number % 26)}{number}" for number in range(count)]
    return await asyncio.gather(*(client.get(PATH, params={"city": city}, headers=user.headers) for city in cities))


async def test_a_flood_reaches_the_service_a_few_at_once(live_url: str, service: WeatherService) -> None:
    at_work: list[object] = []
    most: list[int] = []

    def take_a_moment(handler: Any) -> None:  # noqa: ANN401  # the server's
        at_work.append(handler)
        most.append(len(at_work))
        service.released.wait(0.02)
        # Before the answer, after which the next one comes.
        at_work.remove(handler)
        answer()(handler)

    service.behaviour = take_a_moment
    async with open_weather_client(make_settings(live_url), None, service, weather_concurrency=3) as (client, user):
        answers = await ask_for_many(client, user, 60)

    assert [response.status_code for response in answers] == [200] * 60
    assert len(service.paths) == 60
    assert max(most) <= 3


async def test_a_flood_at_a_service_that_hangs_is_answered_in_time(live_url: str, service: WeatherService) -> None:
    service.behaviour = hang
    # Without the breaker's help.
    changes = {"weather_concurrency": 3, "weather_timeout_seconds": 0.5, "weather_breaker_failures": 1000}
    async with open_weather_client(make_settings(live_url), None, service, **changes) as (client, user):
        started = time.perf_counter()
        answers = await ask_for_many(client, user, 60)

    assert {response.status_code for response in answers} == {503, 504}
    assert all(response.headers["retry-after"] for response in answers)
    # Those that hang do so far longer.
    assert time.perf_counter() - started < 20
    assert len(service.paths) < 40


async def test_a_flood_is_not_held_against_the_service(live_url: str, service: WeatherService) -> None:
    def take_its_time(handler: Any) -> None:  # noqa: ANN401  # the server's
        service.released.wait(2)
        answer()(handler)

    service.behaviour = take_its_time
    changes = {"weather_timeout_seconds": 10, "weather_concurrency": 10}
    async with open_weather_client(make_settings(live_url), None, service, **changes) as (client, user):
        answers = await ask_for_many(client, user, 60)
        afterwards = await client.get(LONDON, headers=user.headers)

    assert {response.status_code for response in answers} == {200, 503}
    assert afterwards.status_code == 200


async def test_an_attempt_that_had_no_time_is_not_held_against_the_service(
    settings: Settings, database: Database, service: WeatherService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nearly all of the time: the second attempt has less, and still enough to be made on a machine that pauses.
    monkeypatch.setattr("app.weather.client.FAIR_SHARE", 0.95)

    def fail_late(handler: Any) -> None:  # noqa: ANN401  # the server's
        service.released.wait(0.6)
        FAILS(handler)

    service.behaviour = in_turn(fail_late, hang, answer())
    changes = {"weather_timeout_seconds": 4, "weather_retry_limit": 1, "weather_breaker_failures": 2}
    async with open_weather_client(settings, database, service, **changes) as (client, user):
        answers = [await client.get(LONDON, headers=user.headers) for _ in range(2)]

    assert [response.status_code for response in answers] == [504, 200]


@pytest.mark.parametrize("path", ["/health/live", ME])
async def test_other_routes_stay_as_fast_while_the_service_hangs(
    live_url: str, service: WeatherService, path: str
) -> None:
    """Two services side by side, in turns: what disturbs the machine disturbs both."""
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
    # One that is kept waiting would take thousands of times as long.
    assert beside < 5 * alone


async def test_the_end_of_the_service_does_not_wait_for_a_call_that_hangs(
    settings: Settings, database: Database, service: WeatherService
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
