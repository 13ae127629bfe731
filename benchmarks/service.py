"""The service compared with minimal applications that give the same answers, and measured under load: `make bench`.

Serves baked projects as in production, on loopback, pinned to one core, for about six minutes; prints tables, and
writes them with a plot to .bench/. The service and the minimal application are measured in turns, so that other load
on the machine affects both: their ratio is the most reliable figure.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from passlib.context import CryptContext

from benchmarks import comparisons, scale
from benchmarks.comparisons import LIVE, PASSWORD, SIGN_IN, Account, open_account
from benchmarks.projects import bake, bake_from, copy_template
from benchmarks.report import HEAD, Finding, Row, plot, table
from benchmarks.servers import (
    Database,
    Server,
    cpu_seconds_of_imports,
    cpu_seconds_to_first_answer,
    serve_floor,
    serve_postgres,
    serve_project,
)
from tests.support.template import ROOT

RESULTS = ROOT / ".bench"
STARTS = 5
SIGN_IN_SECONDS = 5.0
HASHES = 20


def compare(folder: Path, database: Database, project: Path, *, with_bare: bool) -> Iterator[Row]:
    with ExitStack() as stack:
        service = stack.enter_context(serve_project(project, database))
        account = open_account(service)
        driver = stack.enter_context(serve_floor(folder, "driver()", database, project.name))
        if with_bare:
            bare, raw = (stack.enter_context(serve_floor(folder, floor)) for floor in ("bare()", "raw"))
            yield from comparisons.compare_live(service, bare, raw)
            cached = stack.enter_context(serve_project(project, database, AUTH_CACHE_SECONDS="5"))
            yield comparisons.compare_cached(cached, driver, account)
        yield from comparisons.compare_queries(service, driver, account)


def measure_sign_ins(service: Server) -> Iterator[Finding]:
    before = service.usage.cpu_seconds()
    alone = service.load([SIGN_IN], clients=4, seconds=SIGN_IN_SECONDS)
    # Four concurrent sign-ins to one account are near the limit of the throttle, which may refuse some.
    assert alone.succeeded > 0.9 * alone.answered, alone.statuses
    seconds, verify = (service.usage.cpu_seconds() - before) / alone.succeeded, _verify_seconds()
    text = f"{seconds / verify:.2f} ({seconds * 1000:.1f} / {verify * 1000:.1f} ms)"
    yield Finding("CPU of a sign-in, beside one verification", text, "1.4", seconds <= 1.4 * verify)
    sign_ins = service.start_load([SIGN_IN], clients=4, seconds=SIGN_IN_SECONDS)
    live = service.load([LIVE], clients=1, seconds=SIGN_IN_SECONDS - 1)
    sign_ins.wait()
    yield Finding("p99 of `/health/live` while 4 sign in", f"{live.p99:.1f} ms", "15 ms", live.p99 <= 15)


def _verify_seconds() -> float:
    context = CryptContext(["argon2"], argon2__time_cost=2, argon2__memory_cost=19456, argon2__parallelism=1)
    hashed = context.hash(PASSWORD)
    started = time.process_time()
    for _ in range(HASHES):
        context.verify(PASSWORD, hashed)
    return (time.process_time() - started) / HASHES


def measure_tail(service: Server, account: Account) -> Finding:
    outcomes = [service.load([account.todo], clients=32, seconds=2) for _ in range(3)]
    ratio = median(outcome.p99 / outcome.p50 for outcome in outcomes)
    return Finding(
        "p99 of `GET /todos/{id}` beside its p50, 32 clients on 15 connections", f"{ratio:.1f}", "3", ratio <= 3
    )


def measure_start(folder: Path, project: Path, database: Database) -> Iterator[Finding]:
    pairs = [
        (
            cpu_seconds_to_first_answer(project, database),
            cpu_seconds_of_imports("fastapi", "sqlalchemy.ext.asyncio", "uvicorn"),
        )
        for _ in range(STARTS)
    ]
    ratio = median(ours / theirs for ours, theirs in pairs)
    yield Finding("CPU of a start, gunicorn and one worker, beside bare imports", f"{ratio:.2f}", "1.15", ratio <= 1.15)
    with serve_project(project, database) as service, serve_floor(folder, "idle()", database) as idle:
        ours, theirs = service.worker_memory_mib(), idle.worker_memory_mib()
    text = f"{ours / theirs:.2f} ({ours:.0f} / {theirs:.0f} MiB)"
    yield Finding(
        "memory of an idle worker, beside FastAPI, SQLAlchemy and the driver", text, "1.05", ours <= 1.05 * theirs
    )


def measure_bake(folder: Path) -> Finding:
    seconds = []
    template = copy_template(folder)
    for number in range(STARTS):
        started = time.perf_counter()
        bake_from(template, folder, project_slug=f"timed-{number}")
        seconds.append(time.perf_counter() - started)
    return Finding("a bake", f"{median(seconds):.2f} s", "0.3 s", median(seconds) <= 0.3)


def measure_postgres(folder: Path) -> Iterator[Row | Finding]:
    project = bake(folder, project_slug="on-postgresql")
    with serve_postgres(project) as database:
        yield from compare(folder, database, project, with_bare=True)
        yield from measure_start(folder, project, database)
        with serve_project(project, database) as service:
            yield from measure_sign_ins(service)
            # After the sign-ins: they exceed MAX_SESSIONS_PER_USER, which ends the account's older sessions.
            account = open_account(service)
            yield from scale.measure_soak(service, database, account)
            yield from scale.measure_clients(service, account)
            yield from scale.measure_rows(service, database, account)
        with serve_project(project, database, DATABASE_POOL_SIZE="15") as service:
            yield measure_tail(service, account)
        yield from scale.measure_workers(project, database, account)


def measure_sqlite(folder: Path) -> Iterator[Row]:
    project = bake(folder, database="sqlite", project_slug="on-sqlite")
    yield from compare(folder, Database(f"sqlite:///{folder}/measured.sqlite3"), project, with_bare=False)


def measure(folder: Path) -> Iterator[Row | Finding]:
    yield from measure_postgres(folder)
    yield from measure_sqlite(folder)
    yield measure_bake(folder)


def main() -> None:
    started = time.monotonic()
    rows: list[Row] = []
    findings: list[Finding] = []
    with tempfile.TemporaryDirectory() as name:
        for result in measure(Path(name)):
            print(*result.cells, sep=" | ", flush=True)
            if isinstance(result, Row):
                rows.append(result)
            else:
                findings.append(result)
    text = f"{table(HEAD, [row.cells for row in rows])}\n\n"
    text += table(("what", "found", "goal", "holds"), [finding.cells for finding in findings])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "tables.md").write_text(f"{text}\n", encoding="utf-8")
    plot(rows, RESULTS / "ratios.svg")
    print(f"{text}\n\nIn {time.monotonic() - started:.0f} s; also in {RESULTS.name}/, with a plot.")


if __name__ == "__main__":
    main()
