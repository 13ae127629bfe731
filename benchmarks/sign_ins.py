"""The effect of many concurrent sign-ins on other requests: `make bench-sign-ins`.

Serves a baked project (SQLite, gunicorn, one worker, production's hash parameters) on loopback, and requests
`/health/live` during 50 concurrent sign-ins: with the default limit of concurrent hashes, and without a limit.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx2

from benchmarks.projects import PROGRAMS, bake
from tests.support.serving import RunningServer, serve

AT_ONCE = 50
SIGN_INS = 300
IDLE_SECONDS = 5
PASSWORD = "correct horse battery staple"  # noqa: S105  # used only by this benchmark
ACCOUNT = {"email": "ada@example.com", "password": PASSWORD}
FORM = {"grant_type": "password", "username": ACCOUNT["email"], "password": PASSWORD}
CASES = {"bounded, as by default": "1", f"not bounded ({AT_ONCE} at once)": str(AT_ONCE)}


async def probe(client: httpx2.AsyncClient, is_over: Callable[[], bool]) -> list[float]:
    """Request the liveness probe until `is_over`; return the seconds that each response took."""
    waits = []
    while not is_over():
        started = time.perf_counter()
        (await client.get("/health/live")).raise_for_status()
        waits.append(time.perf_counter() - started)
        await asyncio.sleep(0.002)
    return waits


async def sign_in_at_once(client: httpx2.AsyncClient) -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def sign_in() -> None:
        async with gate:
            (await client.post("/api/v1/auth/token", data=FORM)).raise_for_status()

    await asyncio.gather(*(sign_in() for _ in range(SIGN_INS)))


def read_memory_mib(server: RunningServer) -> float:
    """Return the sum of the peak memory of all processes; their peaks may be at different times."""
    peaks = [
        int(line.split()[1])
        for pid in server.list_processes()
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return sum(peaks) / 1024


async def measure(server: RunningServer) -> None:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=server.base_url, timeout=120, limits=limits) as client:
        # Both cases use the same database, so the account already exists in the second case.
        assert (await client.post("/api/v1/users", json=ACCOUNT)).status_code in (201, 409)
        idle_until = time.monotonic() + IDLE_SECONDS
        report("idle", await probe(client, lambda: time.monotonic() > idle_until))
        started = time.perf_counter()
        signing_in = asyncio.create_task(sign_in_at_once(client))
        waits = await probe(client, signing_in.done)
        await signing_in
        report("signing in", waits)
        print(f"    {SIGN_INS / (time.perf_counter() - started):.0f} sign-ins a second")


def report(name: str, waits: list[float]) -> None:
    percentiles = statistics.quantiles(waits, n=100)
    p50, p99 = (f"{percentiles[number - 1] * 1000:7.1f} ms" for number in (50, 99))
    print(f"    {name:<12} /health/live p50 {p50}  p99 {p99}  ({len(waits)} requests)")


def run_case(project: Path, name: str, concurrency: str) -> None:
    print(f"{name}:")
    settings = {
        "PATH": PROGRAMS,
        "UPDATE_DB": "1",
        "WEB_CONCURRENCY": "1",
        "ACCESS_LOG": "false",
        "THROTTLING": "false",
        "PASSWORD_HASH_CONCURRENCY": concurrency,
    }
    with serve(["./start.sh"], project, **settings) as server:
        asyncio.run(measure(server))
        print(f"    {read_memory_mib(server):.0f} MiB of memory at most")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = bake(Path(folder), database="sqlite")
        for name, concurrency in CASES.items():
            run_case(project, name, concurrency)


if __name__ == "__main__":
    main()
