"""Changes a project as a whole or not at all.

Everything is prepared in a copy of the project: the files, their layout, and the migration, with a separate database.
Then the changed files are put in place; if that is interrupted, the old files are restored.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from resources.errors import RefusedError

# Not copied: what is large, private, or not read by the tools that run in the copy.
LEFT_OUT = (".git", ".venv", ".uv", ".postgres", ".postgres.new", "data", "mail", "secrets", "__pycache__", ".*_cache")
# While files are put in place, this folder of the project holds the old ones.
JOURNAL = ".changing"
STARTED = "started"
NEW_DATABASE = "new.sqlite3"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Copy:
    """A copy of a project, in which changes are prepared."""

    project: Path
    path: Path

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")

    def remove(self, name: str) -> None:
        path = self.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def tidy(self, files: Mapping[str, str]) -> None:
        """Sort the imports of Python files, remove unused ones, and format the files, as `make fix` does."""
        names = [name for name in files if name.endswith(".py")]
        self.run("-m", "ruff", "check", "--no-cache", "--quiet", "--fix", "--select=F401,I", "--", *names)
        self.run("-m", "ruff", "format", "--no-cache", "--quiet", "--", *names)

    def migrate(self, message: str) -> None:
        """Write a migration with a new database, so that the database of the developer stays as it is."""
        command = ["-m", "app", "db", "revision", "--", message]
        variables = {"DATABASE_URL": f"sqlite:///{(self.path / NEW_DATABASE).as_posix()}"}
        if "psycopg" in (self.path / "pyproject.toml").read_text(encoding="utf-8"):
            # Starts a server whose data is in the copy.
            command, variables = ["-m", "scripts.embedded_postgres", str(self._python), *command], {}
        folder = self.path / "migrations" / "versions"
        existing = set(folder.glob("*.py"))
        self.run(*command, **variables)
        for path in set(folder.glob("*.py")) - existing:
            text = path.read_text(encoding="utf-8")
            # Alembic's comments ask for what the checks of this command have done.
            path.write_text(re.sub(r"(?m)^ *# ### .*\n", "", text), encoding="utf-8")
            self.tidy({path.relative_to(self.path).as_posix(): ""})

    @property
    def _python(self) -> Path:
        return self.project / ".venv" / "bin" / "python"

    def run(self, *arguments: str, **variables: str) -> None:
        """Run Python of the project's environment in the copy. Raises RefusedError with the output if it fails."""
        # The copy has its own database: what the developer's shell sets must not lead to another one.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("DATABASE_")}
        done = subprocess.run(
            [self._python, *arguments],
            cwd=self.path,
            env={**inherited, "PYTHONDONTWRITEBYTECODE": "1", **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RefusedError(f"{' '.join(arguments[:4])} failed, so nothing was changed:\n{done.stdout.strip()}")


def remove_setting(text: str, prefix: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(prefix))


@contextmanager
def prepare(project: Path) -> Iterator[Copy]:
    """Copy a project. At the end of the block, put what has changed in the copy in place."""
    restore(project)
    if not (project / ".venv" / "bin" / "python").exists():
        raise RefusedError("The project's environment is missing: run `make install`.")
    with _end_in_order(), tempfile.TemporaryDirectory(prefix="resource-") as folder:
        copy = Copy(project, Path(folder).resolve() / "project")
        shutil.copytree(project, copy.path, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        _write_settings(copy)
        before = _list_files(copy.path)
        old = {name: (copy.path / name).read_bytes() for name in before}
        yield copy
        after = _list_files(copy.path)
        new = {name: (copy.path / name).read_bytes() for name in after}
        put_in_place(project, old, new)


def _write_settings(copy: Copy) -> None:
    """Give the copy the settings of the developer, with a separate database and key."""
    settings = copy.path / ".env"
    if not settings.exists():
        shutil.copy(copy.path / ".env.example", settings)
    text = settings.read_text(encoding="utf-8")
    for prefix in ("DATABASE_", "SECRET_KEY="):
        text = remove_setting(text, prefix)
    settings.write_text(f"{text}\nSECRET_KEY={secrets.token_hex(32)}\n", encoding="utf-8")


def _list_files(path: Path) -> list[str]:
    """List what a command may change."""
    folders = ("app", "tests", "migrations", "docs", "scripts")
    files = [each for folder in folders for each in (path / folder).rglob("*")] + list(path.glob("*"))
    named = (each for each in files if each.is_file() and not each.is_symlink() and "__pycache__" not in each.parts)
    names = (each.relative_to(path).as_posix() for each in named)
    return sorted(name for name in names if not name.startswith(NEW_DATABASE))


@contextmanager
def _end_in_order() -> Iterator[None]:
    """End by an exception on a signal, so that temporary files are deleted and old files are restored."""

    def stop(number: int, _frame: FrameType | None) -> None:
        # A second signal, such as one that uv passes on, must not interrupt the restoring.
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    previous = [signal.signal(number, stop) for number in SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(SIGNALS, previous, strict=True):
            signal.signal(number, handler)


def put_in_place(
    project: Path,
    old: Mapping[str, bytes],
    new: Mapping[str, bytes],
    replace: Callable[[Path, Path], object] = os.replace,
) -> None:
    """Change the project's files from the old to the new contents; restore the old ones if that fails.

    Raises RefusedError if somebody has changed a file in the meantime.
    """
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    for name in changed:
        path = project / name
        if (path.read_bytes() if path.exists() else None) != old.get(name):
            raise RefusedError(f"{name} was changed while this command ran. Nothing was changed; repeat the command.")
    journal = project / JOURNAL
    try:
        _write_journal(journal, changed, old, new)
        for name in changed:
            path = project / name
            if name not in new:
                path.unlink()
                _remove_empty_folders(project, path.parent)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                shutil.copymode(path, journal / "new" / name)
            replace(journal / "new" / name, path)
        # From here on, the change is complete: a removed mark means that nothing is restored.
        (journal / STARTED).unlink()
    finally:
        restore(project)


def _write_journal(journal: Path, changed: list[str], old: Mapping[str, bytes], new: Mapping[str, bytes]) -> None:
    for folder, contents in (("old", old), ("new", new)):
        for name in changed:
            if name in contents:
                path = journal / folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(contents[name])
    list_ = journal / "list"
    list_.write_text("".join(f"{name}\n" for name in changed), encoding="utf-8")
    list_.rename(journal / STARTED)


def restore(project: Path) -> None:
    """Restore the old files if an earlier change was interrupted, even by a power failure; can be repeated."""
    journal = project / JOURNAL
    if (journal / STARTED).exists():
        for name in (journal / STARTED).read_text(encoding="utf-8").splitlines():
            path, old = project / name, journal / "old" / name
            if old.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished = journal / "restored"
                shutil.copyfile(old, unfinished)
                if path.exists():
                    shutil.copymode(path, unfinished)
                os.replace(unfinished, path)
            else:
                path.unlink(missing_ok=True)
                _remove_empty_folders(project, path.parent)
        (journal / STARTED).unlink()
    shutil.rmtree(journal, ignore_errors=True)


def _remove_empty_folders(project: Path, folder: Path) -> None:
    while folder != project and folder.is_dir():
        # Python leaves these beside the modules that it has imported.
        if any(each.name != "__pycache__" for each in folder.iterdir()):
            return
        shutil.rmtree(folder)
        folder = folder.parent
