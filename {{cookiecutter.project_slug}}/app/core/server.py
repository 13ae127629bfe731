"""What every process manager shares: how many workers, where they listen, whom they trust, where they count."""

import math
import os
import socket
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from app.core.config.server import ServerSettings
from app.core.hosts import bracket, map_proxies

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
# The most that one took in minutes of reads, writes and sign-ins under start.sh; idle it takes 120 MiB.
WORKER_MEMORY_BYTES = 160 * 1024 * 1024
# One that hangs or dies must not be the only one.
MIN_WORKERS = 2
FIRST_INHERITED_FD = 3
# Connections that wait to be accepted.
BACKLOG = 2048


def worker_count(settings: ServerSettings, root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """One a core that this service may use, as far as its memory allows; WEB_CONCURRENCY decides otherwise."""
    if settings.web_concurrency is not None:
        return settings.web_concurrency
    count = max(MIN_WORKERS, math.ceil(min(usable_cpus(), cpu_quota(root, own) or math.inf)))
    memory = memory_limit(root, own)
    return count if memory is None else max(1, min(count, memory // WORKER_MEMORY_BYTES))


def usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float | None:
    """Cores that the control groups grant, the tightest of all levels; None without a limit."""
    quotas = []
    for folder in _folders(root, own, controller="cpu"):
        version_1 = (*_read_words(folder / "cpu.cfs_quota_us", 1), *_read_words(folder / "cpu.cfs_period_us", 1))
        for words in (_read_words(folder / "cpu.max", 2), version_1):
            # No limit is the word "max" in version 2, and -1 in version 1.
            if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) > 0:
                quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int | None:
    """Bytes that the control groups grant, the tightest of all levels; None without a limit."""
    limits = []
    for folder in _folders(root, own, controller="memory"):
        for limit in (*_read_words(folder / "memory.max", 1), *_read_words(folder / "memory.limit_in_bytes", 1)):
            # Version 1 writes "no limit" as a number near 2**63.
            if limit.isdecimal() and int(limit) < 2**60:
                limits.append(int(limit))
    return min(limits, default=None)


@cache
def usable_memory(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int | None:
    """Memory in bytes that is available to this process; None if unknown."""
    # Windows has none.
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return min((limit for limit in (machine, memory_limit(root, own)) if limit is not None), default=None)


def _folders(root: Path, own: Path, *, controller: str) -> Iterator[Path]:
    """Yield this process's group and those around it: version 2 and, where it is mounted, version 1."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mounts = [root]
        elif controller in controllers.split(","):
            # The kernel and the mount may name them in different orders; each has a link of its own then.
            mounts = [root / controllers, root / controller]
        else:
            mounts = []
        for mount in mounts:
            group = mount / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(mount))
    # A container sees its own group as the root, whatever path it is told.
    yield root
    yield root / controller


def _read_words(file: Path, count: int) -> tuple[str, ...]:
    try:
        words = file.read_text().split()
    except OSError:
        return ()
    return tuple(words[:count]) if len(words) >= count else ()


def bind_address(settings: ServerSettings) -> str:
    """Where gunicorn listens, in its own notation."""
    if settings.unix_socket is not None:
        return f"unix:{settings.unix_socket}"
    return f"{bracket(settings.host)}:{settings.port}"


def listen(settings: ServerSettings) -> socket.socket:
    """Return a socket at HOST and PORT; as gunicorn's, one for all of IPv6 also takes IPv4 where the kernel can."""
    is_ipv6 = ":" in settings.host
    return socket.create_server(
        (settings.host, settings.port),
        family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
        backlog=BACKLOG,
        dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
    )


def trusted_proxies(settings: ServerSettings, families: Collection[int] | None = None) -> str:
    """Whose X-Forwarded headers count; the families are those of the sockets, where they are known.

    Whoever can open a unix socket is the proxy and has no address; over TCP only named addresses are trusted.
    """
    families = inherited_families() if families is None else families
    # Windows has none.
    if families == {getattr(socket, "AF_UNIX", None)} or (not families and settings.unix_socket is not None):
        return "*"
    return ",".join(map_proxies(settings.forwarded_allow_ips))


# Once: gunicorn takes the variables away as it starts, and reads its configuration again at SIGHUP.
@cache
def inherited_families() -> frozenset[int]:
    """What kinds of sockets systemd handed over (sd_listen_fds), if any."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return frozenset()
    return frozenset(_family(FIRST_INHERITED_FD + number) for number in range(int(count)))


def _family(fd: int) -> int:
    with socket.socket(fileno=os.dup(fd)) as inherited:
        return inherited.family


def memory_folder() -> str | None:
    """A file system in memory, where there is one: no disk that stalls, nothing to clean up after a power cut."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # memory, not a shared temporary folder


@contextmanager
def share_metrics() -> Iterator[Path]:
    """Where workers that are started meanwhile add up their metrics; an operator's own folder is used instead."""
    with tempfile.TemporaryDirectory(prefix="metrics-", dir=memory_folder(), ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        yield Path(folder)
