"""The worker monitor provides the features of gunicorn that supervisor and circus lack. It runs in their process.

The monitor opens the listening socket, kills hung workers, replaces the workers one by one at SIGHUP, and stops the
service if a worker cannot start.
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

INTERVAL_SECONDS = 0.2
# The time a manager waits for a worker to exit, in addition to GRACEFUL_TIMEOUT_SECONDS.
SPARE_SECONDS = 5
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
logger = structlog.get_logger(__name__)


def _exit_with(sentence: str) -> None:
    print(sentence, file=sys.stderr)  # noqa: T201  # as load_settings_or_exit does
    sys.exit(EXIT_CANNOT_START)


class WorkerMonitor:
    """Monitors the workers of one process manager: create it before the manager starts, and run it in a thread."""

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
        self._stop_requested = threading.Event()

    @property
    def address(self) -> str:
        """The listening address in gunicorn's notation."""
        if self.listening.family == socket.AF_UNIX:
            return f"unix:{self.listening.getsockname()}"
        host, port = self.listening.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def install_signal_handlers(self) -> None:
        """Install signal handlers that run before the manager's handlers, which must have been installed already."""
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
        """Close the listening socket. If it is systemd's, new connections are queued until the service starts again."""
        self.listening.close()
        if not self.inherited and self.settings.unix_socket is not None:
            self.settings.unix_socket.unlink(missing_ok=True)

    def _stop_workers(self) -> None:
        """Send SIGTERM immediately: supervisor would wait a second, and readiness checks would succeed until then."""
        for pid in self._pids("heartbeat"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _start_reload(self) -> None:
        logger.info("Handling signal: hup")
        self._to_replace = self._pids("heartbeat")

    def run(self) -> None:
        """Check the workers periodically until `stop` is called."""
        while not self._stop_requested.wait(INTERVAL_SECONDS):
            self._reap_dead()
            if not self._stopping:
                self._kill_hung()
                self._replace_next()
                self._stop_if_unstartable()

    def stop(self) -> None:
        self._stop_requested.set()

    def _pids(self, kind: str) -> list[int]:
        return sorted(int(file.name.rpartition("_")[2]) for file in self.folder.glob(f"{kind}_*"))

    def _reap_dead(self) -> None:
        for pid in self._pids("heartbeat"):
            if not is_alive(pid):
                readiness_file(self.folder, pid).unlink(missing_ok=True)
                heartbeat_file(self.folder, pid).unlink(missing_ok=True)

    def _kill_hung(self) -> None:
        for pid in self._pids("heartbeat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                silence = time.monotonic() - heartbeat_file(self.folder, pid).stat().st_mtime
                if silence > self.settings.worker_timeout_seconds:
                    logger.error("worker does not respond and is killed", pid=pid, seconds=round(silence))
                    os.kill(pid, signal.SIGKILL)

    def _replace_next(self) -> None:
        """Stop the next worker of a reload once all workers are ready, so that the service stays available."""
        if self._to_replace and len(self._pids("ready")) >= self.workers:
            pid = self._to_replace.pop(0)
            # Remove the readiness file first, so that the next call waits until the replacement is ready.
            readiness_file(self.folder, pid).unlink(missing_ok=True)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _stop_if_unstartable(self) -> None:
        if (self.folder / CANNOT_START).exists():
            self.exit_code = EXIT_CANNOT_START
            os.kill(os.getpid(), signal.SIGTERM)


def _inherit() -> socket.socket:
    if len(systemd_socket_families()) != 1 or os.environ["LISTEN_FDS"] != "1":
        _exit_with("systemd passed several sockets, but the service accepts only one: keep one ListenStream.")
    return socket.socket(fileno=FIRST_INHERITED_FD)


def _listen(settings: Settings) -> socket.socket:
    try:
        if settings.unix_socket is None:
            return listen(settings)
        listening = socket.socket(socket.AF_UNIX)
        # Remove the socket of a service that was killed.
        settings.unix_socket.unlink(missing_ok=True)
        # Only the service's user and group may open the socket; the proxy is a member of the group.
        before = os.umask(0o007)
        listening.bind(str(settings.unix_socket))
        os.umask(before)
        listening.listen(BACKLOG)
    except OSError as error:
        _exit_with(f"The service cannot listen: {error}. Check HOST, PORT and UNIX_SOCKET.")
    return listening


def notify_systemd(state: str) -> None:
    """Send a state to systemd (sd_notify); do nothing without systemd."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifying, suppress(OSError):
            notifying.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            notifying.sendall(state.encode())


@contextmanager
def run_monitor() -> Iterator[WorkerMonitor]:
    """Monitor the workers while the manager runs in the `with` block, then exit with the service's exit code.

    The manager's configuration file reads the environment variables that are set here.
    """
    settings = load_settings_or_exit()
    if settings.worker_class not in PROTOCOLS:
        _exit_with(f"WORKER_CLASS: must be one of {', '.join(PROTOCOLS)}.")
    configure_logging(settings)
    record_start_time()
    workers = worker_count(settings)
    os.environ["SERVICE_WORKERS"] = str(workers)
    os.environ["SERVICE_STOP_SECONDS"] = str(settings.graceful_timeout_seconds + SPARE_SECONDS)
    os.environ[OUTPUT_FD] = str(_copy_output())
    with metrics_directory() as folder:
        os.environ[FOLDER] = str(folder)
        monitor = WorkerMonitor(settings, folder, workers)
        threading.Thread(target=monitor.run, name="worker-monitor", daemon=True).start()
        yield monitor
        monitor.stop()
    sys.exit(monitor.exit_code)


def _copy_output() -> int:
    output = os.dup(sys.stdout.fileno())
    os.set_inheritable(output, True)
    return output
