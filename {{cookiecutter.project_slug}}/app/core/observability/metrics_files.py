"""Metrics files: each process has one per type of metric. Further files have the totals of ended processes.

The files of ended processes are merged into the totals and deleted. Otherwise each replaced worker would leave files
behind, because prometheus_client deletes none.
"""

import logging
import os
import shutil
import struct
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

from app.core.process.lifecycle import is_alive

if sys.platform != "win32":
    import fcntl

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Initial size of each file: a histogram takes 4 KiB per route and method. Files grow when needed.
RESERVED_BYTES = {
    "counter": 1 << 17,
    "gauge_livemostrecent": 1 << 16,
    "gauge_livesum": 1 << 16,
    "histogram": 1 << 19,
}
# Types that are summed over ended processes; gauges are about live processes only.
ADDED_UP = ("counter", "histogram", "summary")
# The standard logger: structlog is configured later, with the application.
logger = logging.getLogger(__name__)


def open_files() -> None:
    """Allocate the files of this process; call this function before the first metric is created.

    If the file system is full, the process keeps its metrics in memory, because a write to a memory-mapped file
    would kill the process (SIGBUS).
    """
    if FOLDER not in os.environ or sys.platform == "win32":
        return
    folder = Path(os.environ[FOLDER])
    try:
        with locked(folder):
            # Also merge the files of an earlier process with the same pid.
            _add_up(folder, os.getpid())
            _reserve_all({folder / f"{kind}_{os.getpid()}.db": size for kind, size in RESERVED_BYTES.items()})
    except OSError as error:
        values.ValueClass = values.MutexValue
        logger.warning("no space for metrics in %s: those of this worker are missing: %s", folder, error)


def list_files(folder: Path) -> list[str]:
    """Merge the files of ended processes, and return all files to read. The caller must lock the folder."""
    if sys.platform != "win32":
        try:
            _add_up(folder)
        except OSError as error:
            logger.warning("the metrics of ended workers cannot be merged: %s", error)
    # Skip empty files: a process has just created them, and has not written to them yet.
    return [str(file) for file in folder.glob("*.db") if file.stat().st_size > 0]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder: no file is merged twice, or read during a merge."""
    with (folder / "lock").open("a") as lock:
        if sys.platform != "win32":
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _add_up(folder: Path, own: int | None = None) -> None:
    _finish(folder)
    ended = [file for file in folder.glob("*_*.db") if _has_ended(file, own)]
    if not ended:
        return
    plan = folder / "plan"
    shutil.rmtree(plan, ignore_errors=True)
    plan.mkdir()
    for kind in ADDED_UP:
        total = folder / f"{kind}_total.db"
        _write_total(plan / total.name, [total, *(file for file in ended if file.name.startswith(f"{kind}_"))])
    (plan / "ended").write_text("\n".join(file.name for file in ended))
    # The rename commits the totals: if this process is killed afterwards, the next process completes the merge.
    plan.rename(folder / "added-up")
    _finish(folder)


def _finish(folder: Path) -> None:
    added_up = folder / "added-up"
    if not added_up.exists():
        return
    for total in added_up.glob("*.db"):
        total.replace(folder / total.name)
    for name in (added_up / "ended").read_text().splitlines():
        (folder / name).unlink(missing_ok=True)
    # Rename the folder, because a deletion is not atomic; the next `_add_up` deletes the folder.
    added_up.rename(folder / "plan")


def _has_ended(file: Path, own: int | None) -> bool:
    pid = file.stem.rpartition("_")[2]
    return pid.isdecimal() and (int(pid) == own or not is_alive(int(pid)))


def _write_total(target: Path, sources: Iterable[Path]) -> None:
    totals: dict[str, float] = defaultdict(float)
    for source in sources:
        for key, value in _read(source):
            totals[key] += value
    if not totals:
        return
    # The header of a file takes 8 bytes. Besides its key, an entry takes at most 32: a length, padding and two doubles.
    _reserve(target, 8 + sum(len(key.encode()) + 32 for key in totals))
    counts = MmapedDict(str(target))  # type: ignore[no-untyped-call]  # no annotation in the library
    for key, value in totals.items():
        counts.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]  # no annotation in the library
    counts.close()  # type: ignore[no-untyped-call]  # no annotation in the library


def _read(file: Path) -> list[tuple[str, float]]:
    if not file.exists() or file.stat().st_size == 0:
        return []
    try:
        rows = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]  # no annotation in the library
        return [(key, value) for key, value, _, _ in rows]
    except (RuntimeError, struct.error, UnicodeDecodeError):
        logger.warning("a metrics file is damaged and skipped: %s", file.name)
        return []


def _reserve_all(files: dict[Path, int]) -> None:
    try:
        for file, size in files.items():
            _reserve(file, size)
    except OSError:
        for file in files:
            file.unlink(missing_ok=True)
        raise


def _reserve(file: Path, size: int) -> None:
    """Create the file with its space allocated; macOS can only set its size."""
    with file.open("wb") as made:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(made.fileno(), 0, size)
        else:
            made.truncate(size)
