"""How the service scales with workers, clients, rows and requests."""

import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from benchmarks.comparisons import API, EMAIL, Account
from benchmarks.report import Finding
from benchmarks.servers import Database, Server, serve_project

SECONDS = 3.0
WORKERS = (1, 2, 4)
CLIENTS = (1, 8, 32, 128, 512)
FEW, MANY = 1_000, 1_000_000
DEPTH = 10_000
SOAK_SECONDS = 90.0
ADD_ROWS = """
    INSERT INTO todos (id, owner_id, title, description, completed, created_at, updated_at)
    SELECT gen_random_uuid(), users.id, 'Todo ' || number, '', false, moment, moment
    FROM users, generate_series(1, %s) AS number, LATERAL (SELECT now() - number * interval '1 s' AS moment)
    WHERE email = %s
"""


def measure_workers(project: Path, database: Database, account: Account) -> Iterator[Finding]:
    """Measure several numbers of workers, on all cores, which they share with the load and the database."""
    for workers in WORKERS:
        with serve_project(project, database, prefix=(), WEB_CONCURRENCY=str(workers)) as server:
            server.load([account.todo], clients=32, seconds=0.5)
            outcome = server.load([account.todo], clients=32, seconds=SECONDS)
        yield Finding(
            f"`GET /todos/{{id}}`, {workers} workers, 32 clients",
            f"{outcome.per_second:,.0f} a second, p50 {outcome.p50:.1f} ms, p99 {outcome.p99:.1f} ms",
        )


def measure_clients(service: Server, account: Account) -> Iterator[Finding]:
    """Measure several numbers of clients; one client again at the end shows that refusals have no lasting effect."""
    for clients in (*CLIENTS, 1):
        outcome = service.load([account.todo], clients=clients, seconds=SECONDS)
        refused = outcome.statuses.get(503, 0)
        assert outcome.answered == outcome.succeeded + refused, outcome.statuses
        text = f"{outcome.per_second:,.0f} a second, p50 {outcome.p50:.1f} ms, p99 {outcome.p99:.1f} ms"
        if refused:
            text += f"; {refused:,} refused with 503, p99 {outcome.refused_p99:.1f} ms"
        yield Finding(f"`GET /todos/{{id}}`, one worker, {clients} clients", text)


def measure_rows(service: Server, database: Database, account: Account) -> Iterator[Finding]:
    _add_rows(database, FEW)
    few = {name: _milliseconds(service, account, name) for name in ("point", "first page")}
    _add_rows(database, MANY - FEW)
    for name in ("point", "first page"):
        many = _milliseconds(service, account, name)
        yield Finding(f"{name}, {MANY:,} rows", f"{many:.2f} ms; with {FEW:,} rows {few[name]:.2f} ms")
    cursor = _walk(service, account, DEPTH)
    deep = service.load([account.page(20, cursor)], clients=1, seconds=SECONDS).p50
    yield Finding(f"page {DEPTH:,}, {MANY:,} rows", f"{deep:.2f} ms")


def _add_rows(database: Database, count: int) -> None:
    with psycopg.connect(database.url, autocommit=True) as connection:
        connection.execute(ADD_ROWS, (count, EMAIL))
        connection.execute("VACUUM ANALYZE todos")


def _milliseconds(service: Server, account: Account, name: str) -> float:
    call = account.todo if name == "point" else account.page(20)
    return service.load([call], clients=1, seconds=SECONDS / 2).p50


def _walk(service: Server, account: Account, pages: int, limit: int = 100) -> str:
    """Return the cursor after this number of pages of 20 items, reached as a client does: `limit` items a request."""
    cursor = ""
    for _ in range(pages * 20 // limit):
        query = f"?limit={limit}" + (f"&cursor={cursor}" if cursor else "")
        cursor = service.running.request("GET", f"{API}/todos{query}", token=account.token).json["next_cursor"]
    return cursor


def measure_soak(service: Server, database: Database, account: Account) -> Iterator[Finding]:
    """Warm up for half of the time, then measure in the other half how much the resources in use grow."""
    calls = [account.me, account.todo, account.page(), account.new_todo]
    service.load(calls, clients=32, seconds=SOAK_SECONDS / 2)
    before, started = _inventory(service, database), time.monotonic()
    outcome = service.load(calls, clients=32, seconds=SOAK_SECONDS / 2)
    seconds = time.monotonic() - started
    after = _inventory(service, database)
    for name, unit in (("memory", " MiB"), ("open files", ""), ("connections", "")):
        growth = after[name] - before[name]
        hourly = growth * 3600 / seconds
        yield Finding(
            f"{name} after {outcome.answered:,} mixed requests in {seconds:.0f} s",
            f"{before[name]:.1f} to {after[name]:.1f}{unit}, which would be {hourly:+.0f}{unit} in an hour",
            "at most 15 MiB more" if name == "memory" else "no more",
            growth <= (15 if name == "memory" else 0),
        )


def _inventory(service: Server, database: Database) -> dict[str, float]:
    with psycopg.connect(database.url) as connection:
        found = connection.execute("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'")
        (connections,) = found.fetchone() or (0,)
    return {
        "memory": service.usage.memory_mib(),
        "open files": service.usage.open_files(),
        "connections": float(connections),
    }
