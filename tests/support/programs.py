"""Run programs with a time limit, and end all processes that they leave behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

UV = os.environ.get("UV") or shutil.which("uv") or "uv"  # uv sets UV for its children.
# Variables of a person's shell. Everything else of the tests' environment is dropped.
PASSED_ON = ("HOME", "LANG", "TMPDIR", "XDG_RUNTIME_DIR", "SSL_CERT_FILE", "HTTPS_PROXY", "https_proxy")
KILL_AFTER_SECONDS = 20


def person_environment(**variables: str) -> dict[str, str]:
    """Return the environment of a person's shell, without the tests' virtual environment."""
    kept = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(("UV_", "PIP_"))}
    kept.pop("UV_PROJECT_ENVIRONMENT", None)
    path = [folder for folder in os.environ["PATH"].split(os.pathsep) if Path(folder) != Path(sys.prefix, "bin")]
    return kept | {"PATH": os.pathsep.join(path)} | variables


def end_group(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    """End a process and its group (daemons excepted): SIGTERM first, so that it can clean up, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(KILL_AFTER_SECONDS)


def run_program(
    command: Sequence[str], timeout_seconds: float, *, folder: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program and return its output; at the time limit, end the program and fail with its output."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            # Not a pipe: it would stay open until the last process that inherited it ends.
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
