"""A change is made as a whole or not at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from resources.errors import RefusedError
from resources.writing import JOURNAL, put_in_place, restore

from tests.support.template import ROOT

OLD = {"app/kept.py": b"old", "app/changed.py": b"old", "app/notes/gone.py": b"old", "README.md": b"old"}
NEW = {"app/kept.py": b"old", "app/changed.py": b"new", "app/tasks/added.py": b"new", "README.md": b"new"}
# Ends itself at one of the calls that change files. Each is a point where a power failure could end the command.
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
sys.path.append({tools!r})
from resources import writing

calls = 0

def count(function):
    def counted(*arguments, **options):
        global calls
        calls += 1
        if calls == {at}:
            os.kill(os.getpid(), signal.{name})
        return function(*arguments, **options)
    return counted

os.replace = count(os.replace)
for name in ("mkdir", "write_bytes", "write_text", "rename", "unlink"):
    setattr(Path, name, count(getattr(Path, name)))
with writing._end_in_order():
    writing.put_in_place(Path({folder!r}), {old!r}, {new!r}, os.replace)
print("finished")
"""


def write(folder: Path) -> None:
    for name, content in OLD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_are_added_changed_and_removed_with_their_folders(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "app" / "changed.py").chmod(0o755)

    put_in_place(tmp_path, OLD, NEW)

    assert read(tmp_path) == NEW
    assert not (tmp_path / "app" / "notes").exists()
    assert not (tmp_path / JOURNAL).exists()
    assert (tmp_path / "app" / "changed.py").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT", "SIGTERM"])
def test_process_that_is_ended_at_any_point_leaves_all_or_nothing(tmp_path: Path, name: str) -> None:
    outcomes = []
    for at in range(1, 100):
        folder = tmp_path / str(at)
        write(folder)
        script = KILLED.format(tools=str(ROOT / "tools"), at=at, name=name, folder=str(folder), old=OLD, new=NEW)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
        if name == "SIGKILL":
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
            # The next command does this first.
            restore(folder)
        outcomes.append(read(folder))
        assert outcomes[-1] in (OLD, NEW), f"{at}: {done.stderr}"
        assert not (folder / JOURNAL).exists()
        if "finished" in done.stdout:
            break

    assert len(outcomes) > 10
    assert outcomes[0] == OLD
    assert outcomes[-1] == NEW


def test_failure_restores_the_old_files(tmp_path: Path) -> None:
    write(tmp_path)
    calls = []

    def fail_at_the_second(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError("no space left")
        os.replace(source, target)

    with pytest.raises(OSError, match="no space left"):
        put_in_place(tmp_path, OLD, NEW, fail_at_the_second)

    assert read(tmp_path) == OLD


def test_file_that_was_changed_in_the_meantime_is_kept(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "README.md").write_bytes(b"edited")

    with pytest.raises(RefusedError, match=r"README\.md was changed while this command ran"):
        put_in_place(tmp_path, OLD, NEW)

    assert read(tmp_path) == OLD | {"README.md": b"edited"}
