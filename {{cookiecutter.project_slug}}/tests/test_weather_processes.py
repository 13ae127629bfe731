import threading
import time

import pytest

from tests.servers import SERVE, START, run_server, sign_up, wait_for
from tests.upstream_server import hang
from tests.weather_service import KEY, run_weather_service

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("command", [START, SERVE], ids=["start", "serve"])
def test_stop_does_not_wait_long_for_a_weather_service_that_hangs(live_url: str, command: tuple[str, ...]) -> None:
    with (
        run_weather_service() as service,
        run_server(
            live_url, command, WEATHER_API_KEY=KEY, WEATHER_BASE_URL=service.url, WEATHER_TIMEOUT_SECONDS="8"
        ) as server,
        server.open_client() as client,
    ):
        headers = sign_up(client)
        told = client.get("/api/v1/weather?city=London", headers=headers)
        service.behaviour = hang
        statuses = []

        def ask() -> None:
            statuses.append(client.get("/api/v1/weather?city=Paris", headers=headers).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        wait_for(lambda: service.in_progress, "the question")
        started = time.monotonic()
        server.stop()
        asking.join()
        log = server.log

    assert told.status_code == 200
    # The request in progress was answered.
    assert statuses == [504]
    assert time.monotonic() - started < 20
    assert KEY not in log
    assert "Traceback" not in log


def test_invalid_setting_is_named_at_the_start(live_url: str) -> None:
    with (
        pytest.raises(AssertionError, match="WEATHER_BASE_URL"),
        run_server(live_url, SERVE, WEATHER_BASE_URL="example.com"),
    ):
        pass
