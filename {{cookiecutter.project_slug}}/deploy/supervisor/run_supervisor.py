"""Run supervisor in this process, beside the keeper that does what it lacks."""

import logging
import socket
from pathlib import Path

from supervisor.datatypes import SocketConfig
from supervisor.options import ServerOptions
from supervisor.states import SupervisorStates
from supervisor.supervisord import go

from app.core.process.monitor import WorkerMonitor, keep

CONFIGURATION = Path(__file__).with_name("supervisord.conf")

logger = logging.getLogger("supervisor")


class Logger:
    """What supervisor says, in the service's format."""

    handlers = ()

    def critical(self, message: str, **values: object) -> None:
        logger.critical(message % values if values else message)

    def error(self, message: str, **values: object) -> None:
        logger.error(message % values if values else message)

    def warn(self, message: str, **values: object) -> None:
        # To be told to stop is nothing to warn of.
        level = logging.INFO if message.startswith("received ") else logging.WARNING
        logger.log(level, message % values if values else message)

    def info(self, message: str, **values: object) -> None:
        logger.info(message % values if values else message)

    def debug(self, message: str, **values: object) -> None:
        logger.debug(message % values if values else message)

    # Said for each turn of its loop.
    def trace(self, message: str, **values: object) -> None:
        pass

    blather = trace

    def close(self) -> None:
        pass


class InheritedSocket(SocketConfig):  # type: ignore[misc]  # the library has no annotation
    """The keeper's, in a copy: supervisor closes its own whenever no worker is left."""

    url = "inherited"

    def __init__(self, keeper: WorkerMonitor) -> None:
        self.keeper = keeper

    def create_and_bind(self) -> socket.socket:
        if self.keeper.listening.fileno() < 0:
            # Told to stop while it starts a worker, which cannot listen, and ends.
            return socket.socket(socket.AF_UNIX)
        copy = self.keeper.listening.dup()
        self.keeper.at_stop.append(copy.close)
        return copy


class Options(ServerOptions):  # type: ignore[misc]  # the library has no annotation
    def __init__(self, keeper: WorkerMonitor) -> None:
        super().__init__()
        self.keeper = keeper
        self.first = True
        self.test = False

    def make_logger(self) -> None:
        self.logger = Logger()

    def parse_fcgi_socket(self, *_: object) -> InheritedSocket:
        return InheritedSocket(self.keeper)

    def setsignals(self) -> None:
        super().setsignals()
        # Supervisor looks for signals at the end of a turn of its loop: until then it would replace a worker that has
        # ended, on the socket that the keeper has closed.
        self.keeper.at_stop.insert(0, self._start_nobody)
        self.keeper.take_signals()

    def _start_nobody(self) -> None:
        self.mood = SupervisorStates.SHUTDOWN


if __name__ == "__main__":
    with keep() as keeper:
        options = Options(keeper)
        options.realize(["--configuration", str(CONFIGURATION)])
        go(options)
