"""A weather service on this machine, which answers as well or as badly as a test likes."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PATIENCE_SECONDS = 120
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

Behaviour = Callable[["Handler"], None]


class WeatherService:
    def __init__(self) -> None:
        self.behaviour: Behaviour = answer()
        self.paths: list[str] = []
        self.at_once = 0
        # Whoever hangs waits for it.
        self.released = threading.Event()
        self.url = ""
        self._lock = threading.Lock()

    @property
    def queries(self) -> list[dict[str, str]]:
        return [{name: values[0] for name, values in parse_qs(urlsplit(path).query).items()} for path in self.paths]

    def handle(self, handler: "Handler") -> None:
        with self._lock:
            self.paths.append(handler.path)
            self.at_once += 1
        try:
            self.behaviour(handler)
        finally:
            with self._lock:
                self.at_once -= 1


class Handler(BaseHTTPRequestHandler):
    service: WeatherService

    def do_GET(self) -> None:
        self.service.handle(self)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 200

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no error here."""


@contextmanager
def run_weather_service() -> Iterator[WeatherService]:
    service = WeatherService()
    handler = type("OwnHandler", (Handler,), {"service": service})
    with Server(("127.0.0.1", 0), handler) as server:
        service.url = f"http://127.0.0.1:{server.server_port}/data/2.5"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield service
        finally:
            service.released.set()
            server.shutdown()
            thread.join()


def answer(status: int = 200, body: object = WEATHER, **headers: str) -> Behaviour:
    """An answer in one piece; what is no text becomes JSON."""
    content = (body if isinstance(body, str) else json.dumps(body)).encode()

    def behave(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Each of them once, and the last one for ever."""
    left = list(behaviours)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def hang(handler: Handler) -> None:
    handler.service.released.wait(PATIENCE_SECONDS)
    answer()(handler)


def break_off(handler: Handler) -> None:
    """Say more than half of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"name": "Lon')


def hang_up(handler: Handler) -> None:
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """A byte now and then: no single wait is long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    while not handler.service.released.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def never_end(handler: Handler) -> None:
    """Send for ever, and never say how much it will be."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.service.released.is_set():
        handler.wfile.write(b" " * 10_000)
