"""Metrics files of ended workers are merged: no count is lost or added twice, and no file remains."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from io import StringIO
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import pytest
from prometheus_client import Counter, values
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.parser import text_string_to_metric_families

from app.core.observability.metrics import render_metrics
from app.core.observability.metrics_files import FOLDER, RESERVED_BYTES, list_files, locked, open_files

if sys.platform == "win32":
    pytest.skip("on Windows, workers have no file locks, and no metrics are merged", allow_module_level=True)

import resource

# Larger than any pid.
ENDED = 10_000_000
CAKES = mmap_key("cakes", "cakes_total", ["kind"], ["plum"], "Cakes baked.")
BUCKETS = [
    mmap_key("seconds", "seconds_bucket", ["kind", "le"], ["plum", bound], "Time to bake.") for bound in ("1.0", "+Inf")
]
SECONDS = mmap_key("seconds", "seconds_sum", ["kind"], ["plum"], "Time to bake.")
BAKING = mmap_key("baking", "baking", [], [], "Cakes in the oven.")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


def write(file: Path, **counted: float) -> None:
    counts = MmapedDict(str(file))  # type: ignore[no-untyped-call]  # no annotation in the library
    for key, value in counted.items():
        counts.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]  # no annotation in the library
    counts.close()  # type: ignore[no-untyped-call]  # no annotation in the library


def leave_files(folder: Path, pid: int) -> None:
    """Write the files of a worker that has baked two cakes in three seconds."""
    write(folder / f"counter_{pid}.db", **{CAKES: 2})
    write(folder / f"histogram_{pid}.db", **{BUCKETS[0]: 1, BUCKETS[1]: 1, SECONDS: 3})
    write(folder / f"gauge_livesum_{pid}.db", **{BAKING: 1})


def read_samples() -> dict[tuple[str, str], float]:
    """Return the value of each sample, by the sample's name and, in a histogram, the upper bound of its bucket."""
    families = text_string_to_metric_families(render_metrics().decode())
    return {
        (sample.name, sample.labels.get("le", "")): sample.value for family in families for sample in family.samples
    }


def expect(workers: int, living: int) -> dict[tuple[str, str], float]:
    samples: dict[tuple[str, str], float] = {
        ("cakes_total", ""): 2 * workers,
        ("seconds_bucket", "1.0"): workers,
        ("seconds_bucket", "+Inf"): 2 * workers,
        ("seconds_count", ""): 2 * workers,
        ("seconds_sum", ""): 3 * workers,
    }
    if living:
        samples["baking", ""] = living
    return samples


def test_counts_of_ended_workers_are_kept_and_their_files_and_gauges_removed(folder: Path) -> None:
    leave_files(folder, os.getpid())
    for number in range(300):
        leave_files(folder, ENDED + number)

    assert read_samples() == expect(workers=301, living=1)
    assert len(list(folder.iterdir())) < 10
    for number in range(300):
        leave_files(folder, ENDED + number)
    assert read_samples() == expect(workers=601, living=1)
    assert len(list(folder.iterdir())) < 10


def test_worker_merges_metrics_left_by_earlier_process_with_same_id(folder: Path) -> None:
    leave_files(folder, os.getpid())

    open_files()

    assert read_samples() == expect(workers=1, living=0)
    files = {file.name for file in folder.glob(f"*_{os.getpid()}.db")}
    assert {f"{kind}_{os.getpid()}.db" for kind in ("counter", "histogram", "gauge_livesum")} <= files


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="macOS reserves nothing")
def test_worker_reserves_disk_space_for_metrics_at_start(folder: Path) -> None:
    open_files()

    for kind, size in RESERVED_BYTES.items():
        assert (folder / f"{kind}_{os.getpid()}.db").stat().st_blocks * 512 >= size


def test_damaged_file_prevents_neither_metrics_nor_start(folder: Path) -> None:
    leave_files(folder, ENDED)
    (folder / f"counter_{ENDED + 1}.db").write_bytes(b"\xff\xff\x00\x00" * 5)
    (folder / f"counter_{ENDED + 2}.db").touch()

    open_files()

    assert read_samples() == expect(workers=1, living=0)


def in_process(work: Callable[[Path], None], folder: Path) -> None:
    """Run the function in a new process, which has no threads and no open metrics files."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(work, folder).result()


def test_process_killed_at_any_step_loses_no_count_and_doubles_no_count(tmp_path: Path) -> None:
    in_process(kill_at_each_step, tmp_path)


def kill_at_each_step(folder: Path) -> None:
    os.environ[FOLDER] = str(folder)
    for step in count():
        shutil.rmtree(folder)
        folder.mkdir()
        leave_files(folder, ENDED)
        read_samples()
        leave_files(folder, ENDED + 1)
        child = os.fork()
        if child == 0:
            kill_at(step)
            read_samples()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        # The next scrape completes the merge, together with the files of another ended worker.
        leave_files(folder, ENDED + 2)
        assert read_samples() == expect(workers=3, living=0), step
        if status == 0:
            break
    assert step > 20


def kill_at(step: int) -> None:
    """Kill this process at its file operation number `step`, counted from 0."""
    steps = count()

    def watch(event: str, _: object) -> None:
        if event in {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"} and next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def test_processes_that_merge_metrics_concurrently_count_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes, each = 4, 15
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(leave_and_read, [tmp_path] * processes, range(0, processes * each, each), [each] * processes))

    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert read_samples() == expect(workers=processes * each, living=0)
    assert len(list(tmp_path.iterdir())) < 10


def leave_and_read(folder: Path, first: int, files: int) -> None:
    os.environ[FOLDER] = str(folder)
    seen = 0.0
    for number in range(first, first + files):
        made = folder / f"made-{number}"
        made.mkdir()
        leave_files(made, ENDED + number)
        for file in made.iterdir():
            file.rename(folder / file.name)
        made.rmdir()
        cakes = read_samples()[("cakes_total", "")]
        assert cakes >= seen
        seen = cakes


def test_worker_on_full_disk_counts_in_memory_only(tmp_path: Path) -> None:
    in_process(start_without_room, tmp_path)


def start_without_room(folder: Path) -> None:
    os.environ[FOLDER] = str(folder)
    # Use the class that prometheus_client would choose if the folder had been set before the start.
    values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]  # no annotation in the library
    leave_files(folder, os.getppid())
    before = set(folder.iterdir())
    # A limit of the file size simulates a full file system.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    # The limit also applies to the file that captures the standard error.
    with redirect_stderr(StringIO()) as told:
        open_files()
    Counter("pies", "Pies baked.").inc()

    assert "no space for metrics" in told.getvalue()
    assert values.ValueClass is values.MutexValue
    assert set(folder.iterdir()) == before | {folder / "lock"}
    assert read_samples() == expect(workers=1, living=1)


def test_counts_that_cannot_be_merged_are_still_reported(tmp_path: Path) -> None:
    in_process(read_without_room, tmp_path)


def read_without_room(folder: Path) -> None:
    os.environ[FOLDER] = str(folder)
    for number in range(3):
        leave_files(folder, ENDED + number)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    with redirect_stderr(StringIO()) as told:
        assert read_samples() == expect(workers=3, living=3)
    assert "cannot be merged" in told.getvalue()

    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert read_samples() == expect(workers=3, living=0)


def test_empty_file_of_starting_worker_is_not_listed(folder: Path) -> None:
    (folder / f"counter_{os.getpid()}.db").touch()

    with locked(folder):
        assert list_files(folder) == []
