"""What supervisor and circus lack beside gunicorn, done in their process: it watches over the workers that they start.

It opens the socket, ends a worker that hangs, replaces all of them one by one at SIGHUP, and ends the service when
it cannot start.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import structlog

from app.core.config.load import EXIT_CANNOT_START, load_settings_or_exit
from app.core.config.settings import Settings
from app.core.observability.logging import configure_logging
from app.core.process.lifecycle import is_alive, record_start_time
from app.core.process.sockets import BACKLOG, FIRST_INHERITED_FD, listen, systemd_socket_families
from app.core.process.worker import CANNOT_START, FOLDER, OUTPUT_FD, PROTOCOLS, heartbeat_file, readiness_file
from app.core.process.workers import metrics_directory, worker_count

# Between two looks at the workers.
INTERVAL_SECONDS = 0.2
# What a manager gives a worker beyond the time that the worker gives its requests.
SPARE_SECONDS = 5
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
logger = structlog.get_logger(__name__)


def _refuse(sentence: str) -> None:
    print(sentence, file=sys.stderr)  # noqa: T201  # as load_settings_or_exit does
    sys.exit(EXIT_CANNOT_START)


class WorkerMonitor:
    """Made before the manager starts; `keep` runs beside it until it has ended."""

    def __init__(self, settings: Settings, folder: Path, workers: int) -> None:
        self.settings = settings
        self.folder = folder
        self.workers = workers
        self.inherited = bool(systemd_socket_families())
        self.listening = _inherit() if self.inherited else _listen(settings)
        self.exit_code = 0
        self.at_stop: list[Callable[[], None]] = [self._close, self._stop_workers]
        self._to_replace: list[int] = []
        self._stopping = False
        self._ended = threading.Event()

    @property
    def address(self) -> str:
        """As gunicorn writes it."""
        if self.listening.family == socket.AF_UNIX:
            return f"unix:{self.listening.getsockname()}"
        host, port = self.listening.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def take_signals(self) -> None:
        """To be called once the manager has set its own handlers: these come first."""
        for number in STOPS:
            self._precede(number, signal.getsignal(number))
        signal.signal(signal.SIGHUP, lambda _number, _frame: self._start_reload())
        logger.info(f"Listening at: {self.address} ({os.getpid()})")
        notify_systemd("READY=1")

    def _precede(self, number: signal.Signals, handler: object) -> None:
        def stop(_number: int, frame: FrameType | None) -> None:
            if not self._stopping:
                self._stopping = True
                for action in self.at_stop:
                    action()
                logger.info(f"Handling signal: {number.name.removeprefix('SIG').lower()}")
            if callable(handler):
                handler(number, frame)

        signal.signal(number, stop)

    def _close(self) -> None:
        """Refuse new connections; those on systemd's socket wait for the next service."""
        self.listening.close()
        if not self.inherited and self.settings.unix_socket is not None:
            self.settings.unix_socket.unlink(missing_ok=True)

    def _stop_workers(self) -> None:
        """Stop the workers at once: supervisor waits a second, in which they would report ready."""
        for pid in self._pids("heartbeat"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _start_reload(self) -> None:
        logger.info("Handling signal: hup")
        self._to_replace = self._pids("heartbeat")

    def watch(self) -> None:
        while not self._ended.wait(INTERVAL_SECONDS):
            self._bury_the_dead()
            if not self._stopping:
                self._kill_who_hangs()
                self._replace_next()
                self._give_up()

    def end(self) -> None:
        self._ended.set()

    def _pids(self, kind: str) -> list[int]:
        return sorted(int(file.name.rpartition("_")[2]) for file in self.folder.glob(f"{kind}_*"))

    def _bury_the_dead(self) -> None:
        for pid in self._pids("heartbeat"):
            if not is_alive(pid):
                readiness_file(self.folder, pid).unlink(missing_ok=True)
                heartbeat_file(self.folder, pid).unlink(missing_ok=True)

    def _kill_who_hangs(self) -> None:
        for pid in self._pids("heartbeat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                silence = time.monotonic() - heartbeat_file(self.folder, pid).stat().st_mtime
                if silence > self.settings.worker_timeout_seconds:
                    logger.error("worker hangs and is killed", pid=pid, seconds=round(silence))
                    os.kill(pid, signal.SIGKILL)

    def _replace_next(self) -> None:
        """Once all are there that should be, so that there is always one that answers where there are several."""
        if self._to_replace and len(self._pids("ready")) >= self.workers:
            pid = self._to_replace.pop(0)
            # Until it has ended, it is one that is missing.
            readiness_file(self.folder, pid).unlink(missing_ok=True)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _give_up(self) -> None:
        if (self.folder / CANNOT_START).exists():
            self.exit_code = EXIT_CANNOT_START
            os.kill(os.getpid(), signal.SIGTERM)


def _inherit() -> socket.socket:
    if len(systemd_socket_families()) != 1 or os.environ["LISTEN_FDS"] != "1":
        _refuse("The service takes one socket from systemd, and was handed several.")
    return socket.socket(fileno=FIRST_INHERITED_FD)


def _listen(settings: Settings) -> socket.socket:
    try:
        if settings.unix_socket is None:
            return listen(settings)
        listening = socket.socket(socket.AF_UNIX)
        # What a service that was killed has left.
        settings.unix_socket.unlink(missing_ok=True)
        # For the service's user and group, which the proxy joins.
        before = os.umask(0o007)
        listening.bind(str(settings.unix_socket))
        os.umask(before)
        listening.listen(BACKLOG)
    except OSError as error:
        _refuse(f"The service cannot listen: {error}.")
    return listening


def notify_systemd(state: str) -> None:
    """sd_notify: nothing without systemd."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying, suppress(OSError):
            notifying.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            notifying.sendall(state.encode())


@contextmanager
def keep() -> Iterator[WorkerMonitor]:
    """Check the configuration, put what the manager's own needs into the environment, and watch while it runs."""
    settings = load_settings_or_exit()
    if settings.worker_class not in PROTOCOLS:
        _refuse(f"WORKER_CLASS: must be one of {', '.join(PROTOCOLS)}.")
    configure_logging(settings)
    record_start_time()
    workers = worker_count(settings)
    os.environ["SERVICE_WORKERS"] = str(workers)
    os.environ["SERVICE_STOP_SECONDS"] = str(settings.graceful_timeout_seconds + SPARE_SECONDS)
    os.environ[OUTPUT_FD] = str(_copy_output())
    with metrics_directory() as folder:
        os.environ[FOLDER] = str(folder)
        keeper = WorkerMonitor(settings, folder, workers)
        threading.Thread(target=keeper.watch, name="keeper", daemon=True).start()
        yield keeper
        keeper.end()
    sys.exit(keeper.exit_code)


def _copy_output() -> int:
    output = os.dup(sys.stdout.fileno())
    os.set_inheritable(output, True)
    return output
