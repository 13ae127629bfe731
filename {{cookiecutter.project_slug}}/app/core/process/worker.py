"""Worker process of supervisor and circus: serves from the socket that the process manager passes."""

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path

import uvicorn

from app.core.config.load import EXIT_CANNOT_START, load_settings_or_exit
from app.core.config.settings import Settings
from app.core.observability.logging import logging_config
from app.core.process.draining import DrainingServer
from app.core.process.lifecycle import exit_with_parent
from app.core.process.sockets import trusted_proxies

# Environment variable with the folder of heartbeat and readiness files. The monitor creates a new folder at each start,
# so that it contains no pids of earlier workers.
FOLDER = "SERVICE_FOLDER"
# Environment variable with the file descriptor of the manager's output. Workers write to it directly, so that lines are
# never mixed.
OUTPUT_FD = "SERVICE_OUTPUT_FD"
CANNOT_START = "cannot-start"
HEARTBEAT_SECONDS = 1.0
# Event loop and HTTP parser by WORKER_CLASS.
PROTOCOLS = {
    "uvicorn_worker.UvicornWorker": ("auto", "auto"),
    "uvicorn_worker.UvicornH11Worker": ("asyncio", "h11"),
}


def heartbeat_file(folder: Path, pid: int) -> Path:
    return folder / f"heartbeat_{pid}"


def readiness_file(folder: Path, pid: int) -> Path:
    return folder / f"ready_{pid}"


class Worker(DrainingServer):
    """A server that writes files for the monitor: a readiness file after its startup, and a periodic heartbeat.

    The heartbeat shows that the event loop is running.
    """

    def __init__(self, config: uvicorn.Config, folder: Path) -> None:
        super().__init__(config)
        self.folder = folder
        self.beat()

    def beat(self) -> None:
        file = heartbeat_file(self.folder, os.getpid())
        file.touch(mode=0o600)
        # Use the monotonic clock: by the wall clock, workers would look hung after a suspension or a clock change.
        os.utime(file, (time.monotonic(), time.monotonic()))

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        beating = asyncio.create_task(self._beat_periodically())
        try:
            await super().serve(sockets)
        finally:
            beating.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        readiness_file(self.folder, os.getpid()).touch(mode=0o600)

    async def _beat_periodically(self) -> None:
        while True:
            self.beat()
            await asyncio.sleep(HEARTBEAT_SECONDS)


def make_config(settings: Settings, listening: socket.socket) -> uvicorn.Config:
    loop, http = PROTOCOLS[settings.worker_class]
    return uvicorn.Config(
        "app.main:app",
        loop=loop,
        http=http,
        log_config=logging_config(settings),
        access_log=False,
        forwarded_allow_ips=trusted_proxies(settings, {listening.family}),
        timeout_keep_alive=settings.keepalive_seconds,
        timeout_graceful_shutdown=settings.graceful_timeout_seconds,
        limit_max_requests=settings.max_requests or None,
        limit_max_requests_jitter=settings.max_requests // 10,
    )


def take_socket(fd: int) -> socket.socket:
    """Move the socket to another file descriptor, because `fd` may be 0 to 2, which uvloop never closes."""
    listening = socket.socket(fileno=os.dup(fd))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), fd)
    return listening


def run(fd: int) -> None:
    exit_with_parent()
    # Exit with 0 when uvicorn raises the signal again after its shutdown.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit())
    settings = load_settings_or_exit()
    listening = take_socket(fd)
    Worker(make_config(settings, listening), Path(os.environ[FOLDER])).run([listening])


def main() -> None:
    if OUTPUT_FD in os.environ:
        for output in (1, 2):
            os.dup2(int(os.environ[OUTPUT_FD]), output)
    try:
        run(int(sys.argv[1]))
    except SystemExit as exit_:
        if exit_.code == EXIT_CANNOT_START:
            (Path(os.environ[FOLDER]) / CANNOT_START).touch()
        raise


if __name__ == "__main__":
    main()
