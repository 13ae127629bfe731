"""The merge in the project, which is either done or undone: a journal survives a killed process."""

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from updating.errors import RefusalError
from updating.git import GitError, Repository

NAME = "template-update.json"
HELD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# git takes the lock of the index when it starts. A later lock is that of another command.
SECONDS_TO_LOCK = 60


@dataclass(frozen=True)
class Journal:
    """The files that the merge changes, written before it begins. Paths begin at the top folder of the repository."""

    head: str
    index: str
    result: str
    changed: list[str]
    added: list[str]
    folders: list[str]
    started: float


@contextmanager
def lock_project(project: Repository) -> Iterator[int]:
    """Hold a lock until this process, and each git command that inherits it, has ended."""
    folder = os.open(project.path("."), os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RefusalError("Another update of this project is running. Wait until it has ended.") from error
        yield folder
    finally:
        os.close(folder)


def hash_index(project: Repository) -> str:
    return hashlib.sha256(project.run("ls-files", "--stage", "-z")).hexdigest()


def plan(project: Repository, rehearsal: Repository, result: str) -> Journal:
    """Return the journal of a merge with this result; refuse to overwrite files that git does not know."""
    fields = iter(rehearsal.list("diff-tree", "-r", "-z", "--no-renames", "--name-status", "HEAD", result))
    statuses = {path: status for status, path in zip(fields, fields, strict=True)}
    added = [path for path, status in statuses.items() if status == "A"]
    top = project.folder
    if existing := [path for path in added if _is_occupied(top, path, statuses)]:
        raise RefusalError(
            f"The update would overwrite these files, which are not in git: {', '.join(existing)}. "
            "Move them, or commit them."
        )
    parents = {parent for path in added for parent in Path(path).parents if not (top / parent).is_dir()}
    return Journal(
        head=project.read("rev-parse", "HEAD"),
        index=hash_index(project),
        result=result,
        changed=[path for path in statuses if path not in added],
        added=added,
        folders=sorted(map(str, parents), key=len, reverse=True),
        started=time.time(),
    )


def _is_occupied(top: Path, path: str, statuses: dict[str, str]) -> bool:
    """Whether a file is at the path, or at a parent of the path, that the update does not remove."""
    occupied = [each for each in (Path(path), *Path(path).parents[:-1]) if os.path.lexists(top / each)]
    files = [each for each in occupied if (top / each).is_symlink() or not (top / each).is_dir()]
    return any(statuses.get(str(each)) != "D" for each in files)


def merge(project: Repository, journal: Journal, arguments: tuple[str, ...], lock: int) -> str:
    """Run the merge, and return the output of git; undo what git has left if it failed."""
    path = project.path(NAME)
    _write(path, journal)
    # If this fails, the journal stays, and the next update restores the files.
    with hold_signals():
        code, output = _run_detached(project, arguments, lock)
        is_done = hash_index(project) != journal.index
        if not is_done:
            _remove_stale_lock(project, journal)
            restore(project, journal)
        path.unlink()
    if not is_done:
        raise RefusalError(f"git ended with {code} before the merge was done; all files are as before.\n{output}")
    return output


def _run_detached(project: Repository, arguments: tuple[str, ...], lock: int) -> tuple[int, str]:
    """Run git in a separate session, so that Ctrl-C and a closed terminal do not end it."""
    with tempfile.TemporaryFile() as file:
        process = subprocess.Popen(
            project.command(*arguments),
            cwd=project.folder,
            env=project.environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            pass_fds=[lock],
        )
        process.wait()
        file.seek(0)
        return process.returncode, file.read().decode(errors="replace")


@contextmanager
def hold_signals() -> Iterator[None]:
    """Ignore requests to stop; the update ends by itself within seconds."""

    def hold(number: int, _: FrameType | None) -> None:
        os.write(2, b"The files are being written: the update ends in a moment.\n")

    previous = {number: signal.signal(number, hold) for number in HELD}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def recover(project: Repository) -> str | None:
    """Undo the merge of an update that was killed; return what was done, or None if there is nothing to undo."""
    path = project.path(NAME)
    if not path.exists():
        return None
    journal = Journal(**json.loads(path.read_text(encoding="utf-8")))
    said = None
    with hold_signals():
        _remove_stale_lock(project, journal)
        # Otherwise the merge was done, or the team has gone on from there.
        if project.read("rev-parse", "HEAD") == journal.head and hash_index(project) == journal.index:
            left = restore(project, journal)
            said = "An earlier update was interrupted while it wrote the files. They are as before it again."
            if left:
                said += f" These have been edited since, and were left as they are: {', '.join(left)}."
        path.unlink()
    return said


def _remove_stale_lock(project: Repository, journal: Journal) -> None:
    for name in ("index.lock", "MERGE_MSG.lock"):
        path = project.path(name)
        with suppress(FileNotFoundError):
            if path.stat().st_mtime > journal.started + SECONDS_TO_LOCK:
                raise RefusalError(f"Another git command is running, or has left {path}. Remove that file if none is.")
            path.unlink()


def restore(project: Repository, journal: Journal) -> list[str]:
    """Put the files back that the merge has changed, remove those that it has added, and return the others.

    A file with other content than before or after the merge, or the beginning of it, belongs to the team.
    """
    top = project.folder
    before, after = (_read_tree(project, tree) for tree in ("HEAD", journal.result))
    left = []
    for path in journal.added:
        if os.path.lexists(top / path):
            if _is_written_by_git(project, path, after):
                (top / path).unlink()
            else:
                left.append(path)
    for folder in journal.folders:
        with suppress(OSError):
            (top / folder).rmdir()
    back = []
    for path in journal.changed:
        if not os.path.lexists(top / path) or _is_written_by_git(project, path, after):
            back.append(path)
        elif not _is_written_by_git(project, path, before):
            left.append(path)
    names = "".join(f"{path}\0" for path in back)
    project.run("checkout-index", "--force", "--index", "-z", "--stdin", stdin=os.fsencode(names))
    return left


def _read_tree(project: Repository, tree: str) -> dict[str, str]:
    return {path: sha for path, (_, sha) in project.entries(tree).items()}


def _is_written_by_git(project: Repository, path: str, objects: dict[str, str]) -> bool:
    """Whether the file has the content of the object, or the beginning of it."""
    file = project.folder / path
    if path not in objects or (file.is_dir() and not file.is_symlink()):
        return False
    expected = project.run("cat-file", "blob", objects[path])
    if file.is_symlink():
        return os.fsencode(os.readlink(file)) == expected
    if expected.startswith(file.read_bytes()):
        return True
    # Filters of the project, such as those for line endings, may have changed the content.
    return project.find("hash-object", f"--path={path}", "--", str(file)) == objects[path]


def _write(path: Path, journal: Journal) -> None:
    """Write the journal so that it is complete after a loss of power."""
    new = path.with_suffix(".new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(asdict(journal), file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        raise GitError(f"{path.parent} cannot be written safely: {error}") from error
    finally:
        os.close(folder)
