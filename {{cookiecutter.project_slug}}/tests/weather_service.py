"""A weather service on this machine, compatible with OpenWeatherMap."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.upstream_server import UpstreamServer, run_upstream_server

KEY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
WEATHER = {
    "coord": {"lon": -0.13, "lat": 51.51},
    "weather": [{"id": 300, "main": "Drizzle", "description": "light drizzle", "icon": "09d"}],
    "main": {"temp": 7.2, "feels_like": 4.1, "pressure": 1012, "humidity": 81},
    "wind": {"speed": 4.1, "deg": 80},
    "dt": 1485789600,
    "sys": {"country": "GB"},
    "name": "London",
    "cod": 200,
}


@contextmanager
def run_weather_service() -> Iterator[UpstreamServer]:
    with run_upstream_server(WEATHER) as server:
        server.url += "/data/2.5"
        yield server
