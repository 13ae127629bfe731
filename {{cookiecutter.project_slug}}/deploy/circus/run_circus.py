"""Run circus in this process, together with the worker monitor, which adds features that circus lacks."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable
from pathlib import Path

from circus.arbiter import Arbiter

from app.core.process.monitor import WorkerMonitor, run_monitor

CONFIGURATION = Path(__file__).with_name("circus.ini")
TURN_SECONDS = 0.05


class InheritedSocket(socket.socket):
    """A copy of the monitor's socket, which circus treats as a socket that it has opened."""

    so_reuseport = False

    def __init__(self, monitor: WorkerMonitor) -> None:
        super().__init__(fileno=os.dup(monitor.listening.fileno()))
        self.set_inheritable(True)
        monitor.at_stop.append(self.close)

    def bind_and_listen(self) -> None:
        """Do nothing: the monitor's socket is already bound and listening."""


class SerialArbiter(Arbiter):  # type: ignore[misc]  # the library has no annotation
    """An arbiter that queues a stop: circus rejects every command while another one is running."""

    def manage_watchers(self) -> Awaitable[None] | None:
        return None if self._exclusive_running_command else super().manage_watchers()

    def stop(self) -> Awaitable[None]:
        return asyncio.ensure_future(self._stop_when_free())

    async def _stop_when_free(self) -> None:
        while self._exclusive_running_command:  # noqa: ASYNC110  # circus has no event for this
            await asyncio.sleep(TURN_SECONDS)
        await super().stop()


def run(monitor: WorkerMonitor) -> None:
    arbiter = SerialArbiter.load_from_config(str(CONFIGURATION))
    for unbound in arbiter.sockets.values():
        unbound.close()
    arbiter.sockets["web"] = InheritedSocket(monitor)
    monitor.install_signal_handlers()
    arbiter.start()


if __name__ == "__main__":
    # Circus logs internal details at the level INFO.
    logging.getLogger("circus").setLevel(logging.WARNING)
    with run_monitor() as monitor:
        run(monitor)
