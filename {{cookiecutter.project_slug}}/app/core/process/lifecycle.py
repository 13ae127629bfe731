import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STARTED_AT = "SERVICE_STARTED_AT"


class ShutdownFlag:
    """Whether the process was told to stop; readiness says so while the last requests are answered."""

    def __init__(self) -> None:
        self.is_set = False


@contextmanager
def track_shutdown_signals() -> Iterator[ShutdownFlag]:
    """Learn of SIGTERM and SIGINT before the server handles them; it closes the listening socket first."""
    stopping = ShutdownFlag()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: FrameType | None) -> None:
        stopping.is_set = True
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, note)
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)


def record_start_time() -> None:
    """Remember when the service started; workers and their successors inherit it from the process that starts them."""
    os.environ.setdefault(STARTED_AT, str(time.time()))


def started_at() -> float:
    """Seconds since the epoch."""
    record_start_time()
    return float(os.environ[STARTED_AT])


def is_alive(pid: int) -> bool:
    """Tell whether a process with this pid exists. Not for Windows, where os.kill would end it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # The process belongs to another user.
        return True
    return True


def exit_with_parent(interval_seconds: float = 1) -> None:
    """End when the process that started this one is gone, even by SIGKILL."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="stop-with-parent", daemon=True).start()
