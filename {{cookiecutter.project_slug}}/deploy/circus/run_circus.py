"""Run circus in this process, beside the keeper that does what it lacks."""

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable
from pathlib import Path

from circus.arbiter import Arbiter

from app.core.process.monitor import WorkerMonitor, keep

CONFIGURATION = Path(__file__).with_name("circus.ini")
TURN_SECONDS = 0.05


class InheritedSocket(socket.socket):
    """The keeper's, in a copy that circus takes for one of its own."""

    so_reuseport = False

    def __init__(self, keeper: WorkerMonitor) -> None:
        super().__init__(fileno=os.dup(keeper.listening.fileno()))
        self.set_inheritable(True)
        keeper.at_stop.append(self.close)

    def bind_and_listen(self) -> None:
        """It does."""


class PatientArbiter(Arbiter):  # type: ignore[misc]  # the library has no annotation
    """One thing after another: circus itself refuses what is asked while it does something, even to stop."""

    def manage_watchers(self) -> Awaitable[None] | None:
        return None if self._exclusive_running_command else super().manage_watchers()

    def stop(self) -> Awaitable[None]:
        return asyncio.ensure_future(self._stop_when_free())

    async def _stop_when_free(self) -> None:
        while self._exclusive_running_command:  # noqa: ASYNC110  # circus tells nobody that it is free
            await asyncio.sleep(TURN_SECONDS)
        await super().stop()


def run(keeper: WorkerMonitor) -> None:
    arbiter = PatientArbiter.load_from_config(str(CONFIGURATION))
    for unbound in arbiter.sockets.values():
        unbound.close()
    arbiter.sockets["web"] = InheritedSocket(keeper)
    keeper.take_signals()
    arbiter.start()


if __name__ == "__main__":
    # As gunicorn's: what it did is a line of its own, and what it thinks is none.
    logging.getLogger("circus").setLevel(logging.WARNING)
    with keep() as keeper:
        run(keeper)
