"""Compare requests of the service with the same requests to a minimal application, in alternating rounds."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from benchmarks.load import CLIENTS, SECONDS, Call
from benchmarks.report import Row
from benchmarks.servers import HOST, Server

ROUNDS = 5
WARM_UP_SECONDS = 0.5
PAGE = 50
EMAIL, PASSWORD = "ada@example.com", "correct horse battery staple"  # used only by the benchmarks
API = "/api/v1"
LIVE = Call("GET", "/health/live", {"Host": HOST})
SIGN_IN = Call(
    "POST",
    f"{API}/auth/token",
    {"Host": HOST, "Content-Type": "application/x-www-form-urlencoded"},
    f"grant_type=password&username={EMAIL}&password={PASSWORD.replace(' ', '+')}",
)
NEW_TODO = '{"title": "Measure twice", "description": "and cut once", "completed": false}'


@dataclass(frozen=True)
class Account:
    """A user with todos, and an access token."""

    token: str
    todo_id: str

    def call(self, method: str, path: str, body: str = "") -> Call:
        headers = {"Host": HOST, "Authorization": f"Bearer {self.token}"}
        return Call(method, path, {**headers, "Content-Type": "application/json"} if body else headers, body)

    @property
    def me(self) -> Call:
        return self.call("GET", f"{API}/users/me")

    @property
    def todo(self) -> Call:
        return self.call("GET", f"{API}/todos/{self.todo_id}")

    def page(self, limit: int = PAGE, cursor: str = "") -> Call:
        return self.call("GET", f"{API}/todos?limit={limit}" + (f"&cursor={cursor}" if cursor else ""))

    @property
    def new_todo(self) -> Call:
        return self.call("POST", f"{API}/todos", NEW_TODO)


def open_account(server: Server, todos: int = PAGE + 1) -> Account:
    request = server.running.request
    created = request("POST", f"{API}/users", {"email": EMAIL, "password": PASSWORD})
    assert created.status in (201, 409), created.body
    form = {"grant_type": "password", "username": EMAIL, "password": PASSWORD}
    token = request("POST", f"{API}/auth/token", form, form=True).json["access_token"]
    answers = [request("POST", f"{API}/todos", {"title": f"Todo {number}"}, token=token) for number in range(todos)]
    return Account(token, answers[-1].json["id"])


@dataclass(frozen=True)
class Target:
    server: Server
    call: Call


@dataclass
class Samples:
    """The measurements of all rounds of one target."""

    server_us: list[float] = field(default_factory=list)
    database_us: list[float] = field(default_factory=list)
    per_second: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)

    def take(self, target: Target) -> None:
        server, database = target.server, target.server.database
        server_before, database_before = server.usage.cpu_seconds(), database.cpu_seconds() if database else 0
        outcome = server.load([target.call], clients=CLIENTS, seconds=SECONDS)
        assert outcome.succeeded == outcome.answered, f"{target.call.method} {target.call.path}: {outcome.statuses}"
        database_after = database.cpu_seconds() if database else 0
        self.server_us.append((server.usage.cpu_seconds() - server_before) * 1e6 / outcome.answered)
        self.database_us.append((database_after - database_before) * 1e6 / outcome.answered)
        self.per_second.append(outcome.per_second)
        self.p50.append(outcome.p50)
        self.p99.append(outcome.p99)


@dataclass(frozen=True)
class Comparison:
    name: str
    floor_name: str
    goal: float | None
    service: Target
    floor: Target

    def run(self, database: str = "") -> Row:
        service, floor = Samples(), Samples()
        for target in (self.service, self.floor):
            target.server.load([target.call], clients=CLIENTS, seconds=WARM_UP_SECONDS)
        for _ in range(ROUNDS):
            service.take(self.service)
            floor.take(self.floor)
        ratios = [ours / theirs for ours, theirs in zip(service.server_us, floor.server_us, strict=True)]
        return Row(
            request=self.name,
            database=database,
            floor=self.floor_name,
            goal=self.goal,
            ratio=median(ratios),
            server_us=median(service.server_us),
            floor_us=median(floor.server_us),
            database_us=median(service.database_us),
            per_second=median(service.per_second),
            floor_per_second=median(floor.per_second),
            p50=median(service.p50),
            p99=median(service.p99),
        )


def compare_live(service: Server, bare: Server, raw: Server) -> Iterator[Row]:
    """Compare the liveness probe with bare FastAPI, and with an ASGI application without a framework."""
    for name, goal, floor in (("bare FastAPI", 1.4, bare), ("raw ASGI", None, raw)):
        yield Comparison("GET /health/live", name, goal, Target(service, LIVE), Target(floor, LIVE)).run()


def compare_cached(cached: Server, driver: Server, account: Account) -> Row:
    target, floor = Target(cached, account.me), Target(driver, account.call("GET", "/claims"))
    return Comparison("GET /users/me", "FastAPI, JWT", 1.2, target, floor).run("`AUTH_CACHE_SECONDS=5`")


def compare_queries(service: Server, driver: Server, account: Account) -> Iterator[Row]:
    """Compare routes of the service with minimal routes that run the same queries by the database driver alone."""
    assert service.database
    one = "FastAPI, JWT, one query of the driver"
    for name, goal, floor, ours, theirs in (
        ("GET /users/me", 1.3, one, account.me, account.call("GET", "/me")),
        ("GET /todos/{id}", 2.0, one, account.todo, account.call("GET", f"/todos/{account.todo_id}")),
        (f"GET /todos?limit={PAGE}", 1.8, f"the same with {PAGE} rows", account.page(), account.call("GET", "/todos")),
        ("POST /todos", 2.0, "the same with INSERT", account.new_todo, account.call("POST", "/todos", NEW_TODO)),
    ):
        comparison = Comparison(name, floor, goal, Target(service, ours), Target(driver, theirs))
        yield comparison.run(service.database.kind)
