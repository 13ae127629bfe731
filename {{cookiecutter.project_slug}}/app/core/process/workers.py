"""What every process manager shares: how many workers, where they listen, whom they trust, where they count."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.core.cgroups import CGROUPS, OWN_CGROUPS, cpu_quota, memory_limit, usable_cpus
from app.core.config.server import ServerSettings

# The most that one took in minutes of reads, writes and sign-ins under start.sh; idle it takes 120 MiB.
WORKER_MEMORY_BYTES = 160 * 1024 * 1024
# One that hangs or dies must not be the only one.
MIN_WORKERS = 2


def worker_count(settings: ServerSettings, root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """One a core that this service may use, as far as its memory allows; WEB_CONCURRENCY decides otherwise."""
    if settings.web_concurrency is not None:
        return settings.web_concurrency
    count = max(MIN_WORKERS, math.ceil(min(usable_cpus(), cpu_quota(root, own) or math.inf)))
    memory = memory_limit(root, own)
    return count if memory is None else max(1, min(count, memory // WORKER_MEMORY_BYTES))


def tmpfs_directory() -> str | None:
    """A file system in memory, where there is one: no disk that stalls, nothing to clean up after a power cut."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # memory, not a shared temporary folder


@contextmanager
def metrics_directory() -> Iterator[Path]:
    """Where workers that are started meanwhile add up their metrics; an operator's own folder is used instead."""
    with tempfile.TemporaryDirectory(prefix="metrics-", dir=tmpfs_directory(), ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        yield Path(folder)
