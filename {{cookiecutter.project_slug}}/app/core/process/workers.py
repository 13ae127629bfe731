"""Settings shared by all process managers: worker count and metrics directory."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.core.cgroups import CGROUPS, OWN_CGROUPS, cpu_quota, memory_limit, usable_cpus
from app.core.config.server import ServerSettings

# Memory of one worker: the maximum measured during minutes of reads, writes and sign-ins. An idle worker takes 120 MiB.
WORKER_MEMORY_BYTES = 160 * 1024 * 1024
# A second worker serves while one hangs or restarts.
MIN_WORKERS = 2


def worker_count(settings: ServerSettings, root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> int:
    """Return WEB_CONCURRENCY. If unset: one worker per available core, at least two, but fewer if memory is short."""
    if settings.web_concurrency is not None:
        return settings.web_concurrency
    count = max(MIN_WORKERS, math.ceil(min(usable_cpus(), cpu_quota(root, own) or math.inf)))
    memory = memory_limit(root, own)
    return count if memory is None else max(1, min(count, memory // WORKER_MEMORY_BYTES))


def tmpfs_directory() -> str | None:
    """Return a folder on a tmpfs, or None if there is none. A tmpfs never waits for a disk; a reboot empties it."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # memory, not a shared temporary folder


@contextmanager
def metrics_directory() -> Iterator[Path]:
    """Provide a temporary PROMETHEUS_MULTIPROC_DIR for workers started in the `with` block.

    A PROMETHEUS_MULTIPROC_DIR that is already set takes precedence.
    """
    with tempfile.TemporaryDirectory(prefix="metrics-", dir=tmpfs_directory(), ignore_cleanup_errors=True) as folder:
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        yield Path(folder)
