"""CPU and memory available to this process, as limited by its control groups (cgroups, versions 1 and 2)."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """Return the CPU quota in cores, the lowest of all levels of control groups; None without a limit."""
    quotas = []
    for folder in _folders(root, own, controller="cpu"):
        version_1 = (*_read_words(folder / "cpu.cfs_quota_us", 1), *_read_words(folder / "cpu.cfs_period_us", 1))
        for words in (_read_words(folder / "cpu.max", 2), version_1):
            # Version 2 writes "no limit" as "max", version 1 as -1.
            if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) > 0:
                quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int | None:
    """Return the memory limit in bytes, the lowest of all levels of control groups; None without a limit."""
    limits = []
    for folder in _folders(root, own, controller="memory"):
        for limit in (*_read_words(folder / "memory.max", 1), *_read_words(folder / "memory.limit_in_bytes", 1)):
            # Version 1 writes "no limit" as a number near 2**63.
            if limit.isdecimal() and int(limit) < 2**60:
                limits.append(int(limit))
    return min(limits, default=None)


@cache
def usable_memory(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int | None:
    """Return the memory available to this process in bytes; None if unknown."""
    # Windows has no sysconf.
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return min((limit for limit in (machine, memory_limit(root, own)) if limit is not None), default=None)


def _folders(root: Path, own: Path, *, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and its ancestors, in version 2 and, if mounted, version 1."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [root]
        elif controller in controllers.split(","):
            # The folder's name may list the controllers in another order than /proc does. Each controller also has a
            # symbolic link to the folder.
            mounts = [root / controllers, root / controller]
        else:
            mounts = []
        for mount in mounts:
            group = mount / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))
    # A container's own group is mounted directly at `root`, although /proc may show the path of the group on the host.
    yield root
    yield root / controller


def _read_words(file: Path, count: int) -> tuple[str, ...]:
    try:
        words = file.read_text().split()
    except OSError:
        return ()
    return tuple(words[:count]) if len(words) >= count else ()
