import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STARTED_AT = "SERVICE_STARTED_AT"


class ShutdownFlag:
    """Whether the process is shutting down: readiness fails while the last requests complete."""

    def __init__(self) -> None:
        self.is_set = False


@contextmanager
def track_shutdown_signals() -> Iterator[ShutdownFlag]:
    """Yield a flag that SIGTERM and SIGINT set before the server handles the signal and closes its listening socket."""
    shutdown = ShutdownFlag()
    if threading.current_thread() is not threading.main_thread():
        yield shutdown
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def set_flag(number: int, frame: FrameType | None) -> None:
        shutdown.is_set = True
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, set_flag)
    try:
        yield shutdown
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is set_flag:
                signal.signal(number, handler)


def record_start_time() -> None:
    """Record the start time of the service in the environment, which all later workers inherit."""
    os.environ.setdefault(STARTED_AT, str(time.time()))


def started_at() -> float:
    """Return the start time of the service, in seconds since the epoch."""
    record_start_time()
    return float(os.environ[STARTED_AT])


def is_alive(pid: int) -> bool:
    """Return whether a process with this pid exists. Do not call it on Windows, where os.kill would end the process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # The process belongs to another user.
        return True
    return True


def exit_with_parent(interval_seconds: float = 1) -> None:
    """Stop this process when its parent ends, even if SIGKILL ends the parent."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_seconds)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()
