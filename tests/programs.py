"""Run a program that may hang, or leave something behind: neither is waited for, and nothing of it stays."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

KILL_AFTER_SECONDS = 20


def end_group(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """End it and what it has started, but for daemons; gently at first: it may have something to take down."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_AFTER_SECONDS)


def run_program(
    command: Sequence[str], timeout_seconds: float, *, folder: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Return what it printed on both streams; one that does not end in time is ended, and fails with its output."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            # Not a pipe: that ends when the last process that has inherited it does.
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(timeout_seconds)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            end_group(process)
        output.seek(0)
        text = output.read().decode(errors="replace")
    assert ended, f"{' '.join(command)} has not ended within {timeout_seconds} seconds:\n{text[-20000:]}"
    return subprocess.CompletedProcess(command, process.returncode, text)
