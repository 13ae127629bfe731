"""Run supervisor in this process, together with the worker monitor, which adds features that supervisor lacks."""

import logging
import socket
from pathlib import Path

from supervisor.datatypes import SocketConfig
from supervisor.options import ServerOptions
from supervisor.states import SupervisorStates
from supervisor.supervisord import go

from app.core.process.monitor import WorkerMonitor, run_monitor

CONFIGURATION = Path(__file__).with_name("supervisord.conf")

logger = logging.getLogger("supervisor")


class Logger:
    """Logs supervisor's messages in the service's format."""

    handlers = ()

    def critical(self, message: str, **values: object) -> None:
        logger.critical(message % values if values else message)

    def error(self, message: str, **values: object) -> None:
        logger.error(message % values if values else message)

    def warn(self, message: str, **values: object) -> None:
        # Supervisor logs a warning when it receives a signal, which is a normal event.
        level = logging.INFO if message.startswith("received ") else logging.WARNING
        logger.log(level, message % values if values else message)

    def info(self, message: str, **values: object) -> None:
        logger.info(message % values if values else message)

    def debug(self, message: str, **values: object) -> None:
        logger.debug(message % values if values else message)

    # Discard traces, because supervisor writes some in each iteration of its loop.
    def trace(self, message: str, **values: object) -> None:
        pass

    blather = trace

    def close(self) -> None:
        pass


class InheritedSocket(SocketConfig):  # type: ignore[misc]  # the library has no annotation
    """A copy of the monitor's socket, because supervisor closes the socket of a program whenever no worker is left."""

    url = "inherited"

    def __init__(self, monitor: WorkerMonitor) -> None:
        self.monitor = monitor

    def create_and_bind(self) -> socket.socket:
        if self.monitor.listening.fileno() < 0:
            # A stop began while supervisor was starting this worker. With an unbound socket the worker ends, because it
            # cannot listen.
            return socket.socket(socket.AF_UNIX)
        copy = self.monitor.listening.dup()
        self.monitor.at_stop.append(copy.close)
        return copy


class Options(ServerOptions):  # type: ignore[misc]  # the library has no annotation
    def __init__(self, monitor: WorkerMonitor) -> None:
        super().__init__()
        self.monitor = monitor
        self.first = True
        self.test = False

    def make_logger(self) -> None:
        self.logger = Logger()

    def parse_fcgi_socket(self, *_: object) -> InheritedSocket:
        return InheritedSocket(self.monitor)

    def setsignals(self) -> None:
        super().setsignals()
        # Supervisor handles a signal only at the end of an iteration. Until then it would replace each worker that has
        # ended, and the new worker would get a socket that the monitor has already closed.
        self.monitor.at_stop.insert(0, self._start_no_workers)
        self.monitor.install_signal_handlers()

    def _start_no_workers(self) -> None:
        self.mood = SupervisorStates.SHUTDOWN


if __name__ == "__main__":
    with run_monitor() as monitor:
        options = Options(monitor)
        options.realize(["--configuration", str(CONFIGURATION)])
        go(options)
