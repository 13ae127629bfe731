"""A local HTTP server whose responses and failures a test chooses."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

MAX_HANG_SECONDS = 120

Behaviour = Callable[["Handler"], None]


class UpstreamServer:
    def __init__(self, body: object) -> None:
        self.body = body
        self.behaviour: Behaviour = answer()
        self.paths: list[str] = []
        self.in_progress = 0
        # Ends the responses that hang.
        self.released = threading.Event()
        self.url = ""
        self._lock = threading.Lock()

    @property
    def queries(self) -> list[dict[str, str]]:
        return [{name: values[0] for name, values in parse_qs(urlsplit(path).query).items()} for path in self.paths]

    def handle(self, handler: "Handler") -> None:
        with self._lock:
            self.paths.append(handler.path)
            self.in_progress += 1
        try:
            self.behaviour(handler)
        finally:
            with self._lock:
                self.in_progress -= 1


class Handler(BaseHTTPRequestHandler):
    upstream: UpstreamServer

    def do_GET(self) -> None:
        self.upstream.handle(self)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 200

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore errors of clients that disconnect."""


@contextmanager
def run_upstream_server(body: object) -> Iterator[UpstreamServer]:
    upstream = UpstreamServer(body)
    handler = type("OwnHandler", (Handler,), {"upstream": upstream})
    with Server(("127.0.0.1", 0), handler) as server:
        upstream.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield upstream
        finally:
            upstream.released.set()
            server.shutdown()
            thread.join()


def answer(status: int = 200, body: object = None, **headers: str) -> Behaviour:
    """Send a complete response with `body`, by default the server's own; it is sent as JSON unless it is a string."""

    def behave(handler: Handler) -> None:
        content = handler.upstream.body if body is None else body
        encoded = (content if isinstance(content, str) else json.dumps(content)).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(encoded)))
        handler.end_headers()
        handler.wfile.write(encoded)

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """Use each response once, then repeat the last one."""
    left = list(behaviours)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def hang(handler: Handler) -> None:
    handler.upstream.released.wait(MAX_HANG_SECONDS)
    answer()(handler)


def break_off(handler: Handler) -> None:
    """Close the connection in the middle of the body."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"name": "Lon')


def hang_up(handler: Handler) -> None:
    """Close the connection without a response."""
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """Send single bytes with short pauses: no single read takes long, but the response does not end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    while not handler.upstream.released.wait(0.02):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def never_end(handler: Handler) -> None:
    """Send a body without an end and without Content-Length."""
    handler.send_response(200)
    handler.end_headers()
    while not handler.upstream.released.is_set():
        handler.wfile.write(b" " * 10_000)
