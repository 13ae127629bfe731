"""The log format for people, with colors only on terminals."""

import os
import pty
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

import pytest

from app.core.project import ROOT

ESCAPE = "\x1b"
# Logs a line of the service, a line that uvicorn also writes in colors, a line of a library, and a traceback.
LINES = """
import logging, structlog
from app.core.config.server import ServerSettings
from app.core.observability.logging import configure_logging

configure_logging(ServerSettings(_env_file=None, log_format="console"))
structlog.get_logger("app").info("first", path="/x")
logging.getLogger("uvicorn.error").info("second", extra={"color_message": "\x1b[1msecond\x1b[0m"})
logging.getLogger("alembic").warning("third")
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger("app").exception("fourth")
"""
WRITE_LINES = (sys.executable, "-B", "-c", LINES)
HELP = (sys.executable, "-B", "-m", "app", "--help")
painted = pytest.mark.parametrize("command", [WRITE_LINES, HELP], ids=["log", "command line"])


def in_pipe(command: Sequence[str], **variables: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=environment(variables), capture_output=True, text=True, check=True)  # noqa: S603  # a command of this test, without input from outside
    return done.stdout + done.stderr


def in_terminal(command: Sequence[str], **variables: str) -> str:
    screen, keyboard = pty.openpty()
    with os.fdopen(screen, "rb", buffering=0) as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(variables), stdout=keyboard, stderr=keyboard)  # noqa: S603  # a command of this test, without input from outside
        os.close(keyboard)
        shown = b""
        # Linux reports an error once no process has the terminal open.
        with suppress(OSError):
            while part := output.read(1 << 16):
                shown += part
        assert process.wait() == 0
    return shown.decode()


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "TERM": "xterm-256color", **variables}


@painted
def test_a_terminal_shows_colors(command: Sequence[str]) -> None:
    assert ESCAPE in in_terminal(command)


@painted
def test_a_pipe_gets_no_colors(command: Sequence[str]) -> None:
    assert ESCAPE not in in_pipe(command)


def test_log_lines_without_colors_are_complete() -> None:
    lines = in_pipe(WRITE_LINES)

    assert all(word in lines for word in ("first", "second", "third", "fourth", "ZeroDivisionError"))


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_environment_can_turn_off_colors_in_terminal(variables: dict[str, str]) -> None:
    assert ESCAPE not in in_terminal(WRITE_LINES, **variables)


def test_empty_color_variable_is_ignored() -> None:
    assert ESCAPE in in_terminal(WRITE_LINES, NO_COLOR="")
    assert ESCAPE not in in_pipe(WRITE_LINES, FORCE_COLOR="")


def test_colors_can_be_forced_into_a_pipe() -> None:
    assert ESCAPE in in_pipe(WRITE_LINES, FORCE_COLOR="1")
