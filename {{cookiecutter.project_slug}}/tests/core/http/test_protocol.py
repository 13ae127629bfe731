"""HTTP rules for all routes, including routes of features that are added later."""

import io
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import iter_route_contexts
from prometheus_client import REGISTRY
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.accounts.dependencies import CurrentCaller
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.http.middleware.request_check import MAX_TARGET_BYTES, RequestCheckMiddleware
from app.core.http.parsing import MAX_FIELDS
from app.core.http.routing import FeatureRouter
from tests.support.accounts import PASSWORD, TOKEN_PATH, Account, confirmed, request_token, sign_in
from tests.support.applications import create_app
from tests.support.bodies import fill_path
from tests.support.clients import open_client
from tests.support.databases import make_settings

USERS = "/api/v1/users"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
JSON = {"Content-Type": "application/json"}
ORIGIN = "https://app.example.com"
# Headers whose values differ between responses.
VOLATILE = {"content-length", "set-cookie", "x-request-id"}
CYRILLIC = "пароль от сервера"


def list_methods(app: FastAPI) -> dict[str, set[str]]:
    """Return the methods of all routes by path, with values for the parameters."""
    methods: dict[str, set[str]] = defaultdict(set)
    for route in iter_route_contexts(app.routes):
        if route.methods:
            parameters: dict[str, str] = defaultdict(lambda: str(uuid4()))
            methods[fill_path(route.path_format or "", parameters)] |= route.methods
    return methods


def list_pages(app: FastAPI) -> list[str]:
    return [path for path, methods in list_methods(app).items() if "GET" in methods]


async def test_head_is_answered_as_get_without_a_body(app: FastAPI, client: httpx2.AsyncClient, admin: Account) -> None:
    for path in [*list_pages(app), "/docs/assets/swagger-ui.css", "/nowhere"]:
        # Paths with generated ids are requested only without authentication, so that none causes a request to another
        # service.
        callers = ({},) if path.count("-") >= 4 else ({}, admin.headers)
        for caller in callers:
            got = await client.get(path, headers=caller)
            client.cookies.clear()
            head = await client.head(path, headers=caller)
            client.cookies.clear()

            assert (head.status_code, head.content) == (got.status_code, b""), path
            assert head.headers.keys() == got.headers.keys(), path
            assert {name: value for name, value in head.headers.items() if name not in VOLATILE} == {
                name: value for name, value in got.headers.items() if name not in VOLATILE
            }, path


@pytest.mark.parametrize("path", ["/health", "/openapi.json", "/docs/assets/swagger-ui.css", "/nowhere/else"])
async def test_head_has_content_length_of_get(client: httpx2.AsyncClient, path: str) -> None:
    assert (await client.head(path)).headers["content-length"] == str(len((await client.get(path)).content))


async def test_head_of_missing_page_is_404_without_body(client: httpx2.AsyncClient) -> None:
    head = await client.head("/nowhere", headers={"Accept": "text/html"})

    assert (head.status_code, head.content) == (404, b"")


async def test_head_of_endless_stream_ends_without_body(app: FastAPI) -> None:
    produced = 0

    @app.get("/endless")
    async def read_endless() -> StreamingResponse:
        async def stream() -> AsyncIterator[bytes]:
            nonlocal produced
            while True:
                produced += 1
                yield b"x"

        return StreamingResponse(stream(), headers={"X-Kind": "endless"})

    async with open_client(app) as client:
        head = await client.head("/endless")

    assert (head.status_code, head.headers["x-kind"], head.content) == (200, "endless", b"")
    assert produced <= 1


async def test_head_is_counted_and_logged_as_head(client: httpx2.AsyncClient, logs: io.StringIO) -> None:
    labels = {"method": "HEAD", "route": "/api/v1/users/me", "status": "401"}
    before = REGISTRY.get_sample_value("http_requests_total", labels) or 0

    await client.head(f"{USERS}/me")

    assert REGISTRY.get_sample_value("http_requests_total", labels) == before + 1
    assert json.loads(logs.getvalue())["method"] == "HEAD"


async def test_allow_header_lists_all_methods_of_every_path(app: FastAPI, client: httpx2.AsyncClient) -> None:
    for path, methods in list_methods(app).items():
        refused = await client.request("BREW", path)
        asked = await client.options(path)

        allowed = set(refused.headers["allow"].split(", "))
        assert refused.status_code == 405, path
        assert asked.status_code == 204, path
        assert asked.headers["allow"] == refused.headers["allow"], path
        assert allowed >= methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()), path
        for method in allowed:
            assert (await client.request(method, path)).status_code != 405, f"{method} {path}"


def mount_examples(app: FastAPI, folder: Path) -> None:
    (folder / "a.txt").write_text("a")
    for method, path in (("GET", "/{number}"), ("PUT", "/{number}"), ("PATCH", "/last")):
        router = FeatureRouter(prefix="/tenants/{tenant}/things")
        router.add_api_route(path, lambda: None, methods=[method])
        app.include_router(router, prefix="/tested")

    async def answer(_request: object) -> PlainTextResponse:
        return PlainTextResponse("a")

    routes = [Route("/x", answer, methods=["POST"]), Route("/{name}", answer)]
    app.routes.append(Mount("/tested/mount/{tenant}", routes=routes))
    app.mount("/tested/files", StaticFiles(directory=folder))


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/tested/tenants/a/things/1", "GET, HEAD, OPTIONS, PUT"),
        ("/tested/tenants/a/things/last", "GET, HEAD, OPTIONS, PATCH, PUT"),
        ("/tested/mount/a/x", "GET, HEAD, OPTIONS, POST"),
        ("/tested/mount/a/y", "GET, HEAD, OPTIONS"),
        ("/tested/files/a.txt", "GET, HEAD, OPTIONS"),
    ],
)
async def test_allow_header_combines_routers_mounts_and_path_parameters(
    app: FastAPI, tmp_path: Path, path: str, allow: str
) -> None:
    mount_examples(app, tmp_path)

    async with open_client(app) as client:
        refused = await client.delete(path)
        asked = await client.options(path)
        head = await client.head(path)

    assert (refused.status_code, refused.headers["allow"]) == (405, allow)
    assert refused.headers["content-type"] == "application/problem+json"
    assert (asked.status_code, asked.headers["allow"], asked.content) == (204, allow, b"")
    assert (head.status_code, head.content) == (200, b"")


async def test_openapi_has_no_operation_for_head_or_options(settings: Settings) -> None:
    paths = create_app(settings).openapi()["paths"]

    assert {method for path in paths.values() for method in path} <= {"delete", "get", "patch", "post", "put"}


async def test_configured_cors_origin_can_send_head_and_options(migrated_url: str, database: Database) -> None:
    app = create_app(make_settings(migrated_url, cors_origins=ORIGIN), database)
    async with open_client(app) as client:
        headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "HEAD"}
        preflight = await client.options(USERS, headers={**headers, "Access-Control-Request-Headers": "authorization"})
        plain = await client.options(USERS, headers={"Origin": ORIGIN})

    assert preflight.status_code == 200
    assert (plain.status_code, plain.headers["access-control-allow-origin"]) == (204, ORIGIN)


async def chunks(content: bytes) -> AsyncIterator[bytes]:
    """Yield single bytes, so that chunks end in the middle of characters."""
    for byte in content:
        yield bytes([byte])


@pytest.mark.parametrize("in_chunks", [True, False])
async def test_raw_utf8_in_form_equals_percent_encoded_utf8(client: httpx2.AsyncClient, in_chunks: bool) -> None:
    email = f"{uuid4().hex}@example.com"
    created = await client.post(USERS, json={"email": email, "password": CYRILLIC})
    form = f"grant_type=password&username={email}&password={CYRILLIC.replace(' ', '+')}".encode()

    raw = await client.post(TOKEN_PATH, content=chunks(form) if in_chunks else form, headers=FORM)
    encoded = await sign_in(client, created.json()["id"], email, CYRILLIC)

    assert raw.status_code == 200, raw.text
    assert encoded.password == CYRILLIC


@pytest.mark.parametrize("password", [CYRILLIC.encode("cp1251"), b"caf\xe9", b"%E9", b"\xed\xa0\x80", b"\xd0%D0"])
async def test_form_that_is_not_utf8_does_not_count_as_failed_sign_in(
    migrated_url: str, database: Database, password: bytes
) -> None:
    app = create_app(make_settings(migrated_url, throttling=True, throttle_account_attempts=1), database)
    email = f"{uuid4().hex}@example.com"
    async with open_client(app) as client:
        await client.post(USERS, json={"email": email, "password": PASSWORD})
        for _ in range(3):
            form = b"grant_type=password&username=%s&password=%s" % (email.encode(), password)
            refused = await client.post(TOKEN_PATH, content=form, headers=FORM)
        right = await request_token(client, username=email, password=PASSWORD)

    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_request")
    assert "UTF-8" in refused.json()["error_description"]
    assert right.status_code == 200


@pytest.mark.parametrize("body", [b'{"email": "\xff"}', b'{"\xe9": 1}', b"\xd0", '{"email": "й"}'.encode("cp1251")])
async def test_json_that_is_not_utf8_is_refused(client: httpx2.AsyncClient, body: bytes) -> None:
    refused = await client.post(USERS, content=body, headers=JSON)

    assert refused.status_code == 400
    assert "UTF-8" in refused.json()["detail"]


class QueryMiddleware:
    """Sends a query unchanged, because test clients would encode it."""

    def __init__(self, app: ASGIApp, query: bytes) -> None:
        self.app, self.query = app, query

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, "query_string": self.query}, receive, send)


@pytest.mark.parametrize(
    ("query", "status", "answer"),
    [
        ("name=й".encode(), 200, '"й"'),
        (b"name=%D0%B9", 200, '"й"'),
        (b"name=100%&other=%", 200, '"100%"'),
        (b"name=%2&other=%zz", 200, '"%2"'),
        (b"name=%%%41=+%25", 200, '"%%A= %"'),
        (b"name=\xff", 400, "UTF-8"),
        (b"name=%FF", 400, "UTF-8"),
        (b"other=%FF&name=a", 400, "UTF-8"),
    ],
)
async def test_query_is_decoded_as_utf8_or_refused(app: FastAPI, query: bytes, status: int, answer: str) -> None:
    router = FeatureRouter(prefix="/tested-names")

    @router.get("")
    async def read_name(name: str) -> str:
        return name

    app.include_router(router)
    app.user_middleware.append(Middleware(QueryMiddleware, query))
    async with open_client(app) as client:
        # Swap the last two middlewares: QueryMiddleware must run before the middleware that checks queries.
        app.user_middleware[-2:] = reversed(app.user_middleware[-2:])
        response = await client.get("/tested-names")

    assert response.status_code == status, response.text
    assert answer in response.text


def list_protected(app: FastAPI) -> Iterator[tuple[str, str]]:
    for path, operations in app.openapi()["paths"].items():
        yield from ((method.upper(), path) for method, operation in operations.items() if operation.get("security"))


NO_MAIL = {
    "environment": "production",
    "allowed_hosts": "localhost,example.com",
    "secret_key": "Zx81mQ0pLr7tVb3nHy6kWd9sJf2gCa5e",
    "storage_folder": Path("/tmp/nowhere"),  # noqa: S108  # nothing is stored
}


@pytest.mark.parametrize(
    ("caller", "changes"),
    [
        (None, {}),
        (None, {"registration_open": False}),
        (None, NO_MAIL),
        ("Bearer nonsense", NO_MAIL),
        ("ended", NO_MAIL),
    ],
)
async def test_authentication_comes_first_on_every_route(
    migrated_url: str,
    database: Database,
    client: httpx2.AsyncClient,
    user: Account,
    changes: dict[str, object],
    caller: str | None,
) -> None:
    if caller == "ended":
        await client.delete(f"{USERS}/me", headers=await confirmed(client, user))
    authorization = user.headers if caller == "ended" else {"Authorization": caller} if caller else {}
    app = create_app(make_settings(migrated_url, max_body_bytes=1000, **changes), database)
    contents: list[tuple[bytes, dict[str, str]]] = [
        (b"", {}),
        (b"{", JSON),
        (b'{"x": "\xff"}', JSON),
        (b'{"x": 1}', JSON),
        (b"x" * 2000, JSON),
        (b"x=%FF", FORM),
        (b"x", {"Content-Type": "nonsense"}),
    ]
    checked = 0
    async with open_client(app) as guest:
        for method, path in list_protected(app):
            targets = [fill_path(path, defaultdict(partial(str, value))) for value in ("x", str(uuid4()))]
            requests = [(targets[0], content, headers) for content, headers in contents]
            requests += [(targets[1], b"{}", JSON), (f"{targets[1]}?limit=x&cursor=%FF", b"", {})]
            for target, content, headers in requests:
                answer = await guest.request(method, target, content=content, headers={**headers, **authorization})
                assert answer.status_code == 401, f"{method} {target} {content[:20]!r}: {answer.text}"
                assert answer.headers["www-authenticate"].startswith("Bearer")
                checked += 1
    assert checked > 0


async def test_protected_routes_respond_with_no_store(app: FastAPI, client: httpx2.AsyncClient, admin: Account) -> None:
    router = FeatureRouter(prefix="/tested-public")
    router.add_api_route("", lambda: "public")
    app.include_router(router)
    for method, path in list_protected(app):
        for caller in ({}, admin.headers):
            target = fill_path(path, defaultdict(lambda: str(uuid4())))
            # This route would end the session.
            if (method, path, bool(caller)) == ("DELETE", f"{USERS}/me", True):
                continue
            answer = await client.request(method, target, headers=caller)
            assert answer.headers.get("cache-control") == "no-store", f"{method} {path} {answer.status_code}"

    assert "cache-control" not in (await client.get("/tested-public")).headers


async def test_route_can_set_its_own_cache_control(app: FastAPI, client: httpx2.AsyncClient, user: Account) -> None:
    router = FeatureRouter(prefix="/tested-own")

    @router.get("")
    async def read_own(_caller: CurrentCaller, response: Response) -> None:
        response.headers["Cache-Control"] = "private, max-age=60"

    app.include_router(router)

    answer = await client.get("/tested-own", headers=user.headers)

    assert (answer.status_code, answer.headers["cache-control"]) == (200, "private, max-age=60")


NONSENSE = [
    b"",
    b" ",
    b"http://[",
    b"http://[::1",
    b"http://a:b",
    b"http://a:99999999999",
    b"//",
    b"\xff\xfe",
    b"\xf0\x9f\x98\x80",
    b"null",
    b"=",
    b";=;=,",
    b'"',
    b"bytes=9-1,-,x",
    b"W/\"x', *",
    b"Bearer " + b"." * 50,
    b"Basic ====",
    b'for="[::1"; proto=[;',
    b"multipart/form-data; boundary=\xff",
    b"application/json; charset=nonsense",
    b"application/x-www-form-urlencoded; charset=utf-16",
    b"-1",
    b"1e9",
    b"9" * 5000,
    b"x" * 9000,
]
HEADERS = [
    "Accept",
    "Accept-Encoding",
    "Accept-Language",
    "Access-Control-Request-Headers",
    "Access-Control-Request-Method",
    "Authorization",
    "Content-Length",
    "Content-Type",
    "Cookie",
    "Expect",
    "Forwarded",
    "Host",
    "If-Match",
    "If-Modified-Since",
    "If-None-Match",
    "If-Range",
    "Last-Event-ID",
    "Origin",
    "Range",
    "Referer",
    "Sec-Fetch-Site",
    "Transfer-Encoding",
    "User-Agent",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Request-ID",
]


@pytest.mark.parametrize("header", HEADERS)
async def test_no_header_value_causes_server_error(
    migrated_url: str, database: Database, logs: io.StringIO, header: str
) -> None:
    settings = make_settings(
        migrated_url,
        allowed_hosts="*",
        cors_origins=ORIGIN,
        # With worker class "asgi" the application itself reads the forwarded headers.
        worker_class="asgi" if find_spec("gunicorn") else "uvicorn_worker.UvicornWorker",
    )
    app = create_app(settings, database)
    requests = [("GET", path) for path in ("/", f"{USERS}/me", f"{USERS}/", "/docs/assets/swagger-ui.css")]
    # One request of each kind: JSON, a form, the form of a page (if there are pages), and a preflight request.
    requests += [("POST", USERS), ("POST", TOKEN_PATH), ("POST", "/sign-in"), ("OPTIONS", USERS)]
    async with open_client(app) as client:
        for method, path in requests:
            for value in NONSENSE:
                headers: list[tuple[bytes, bytes]] = [(header.encode(), value)]
                if method == "POST" and header != "Content-Type":
                    kind = JSON if path == USERS else FORM
                    headers.append((b"Content-Type", kind["Content-Type"].encode()))
                request = client.build_request(method, path, headers=headers, content=b"x=1")
                answer = await client.send(request)
                assert answer.status_code != 500, f"{method} {path}, {header}: {value[:40]!r}"
    assert "unhandled error" not in logs.getvalue()


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
@pytest.mark.parametrize(
    "path",
    [
        *("/health%0a", "/metrics%0a", "/openapi.json%0a", "/api/v1/users/me%0a", "/metrics%0a/", "/nowhere%0a"),
        *("/%00", "/sign-in%0d", "/sign-in%0d/", "/a%1fb/", "/static/%7f", f"{TOKEN_PATH}%09"),
    ],
)
async def test_a_control_character_in_a_path_is_refused(client: httpx2.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path)

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_control_character_in_the_path_of_a_websocket_is_refused() -> None:
    accepted: list[str] = []

    async def accept(scope: Scope, _receive: Receive, _send: Send) -> None:
        accepted.append(scope["path"])

    async def ignore(message: Message) -> None:
        sent.append(message["type"])

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    sent: list[str] = []
    app = RequestCheckMiddleware(accept)
    for path in ("/events\n", "/events"):
        await app({"type": "websocket", "path": path, "query_string": b"", "headers": []}, receive, ignore)

    assert (accepted, sent) == (["/events"], ["websocket.close"])


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (f"/health?{'x' * MAX_TARGET_BYTES}", 414),
        (f"/{'x' * MAX_TARGET_BYTES}", 414),
        (f"/health?{'&' * MAX_FIELDS}", 400),
        (f"/health?{'a&' * MAX_FIELDS}", 400),
        (f"/health?{'&a' * (MAX_FIELDS - 1)}", 200),
        (f"/health?{'x' * (MAX_TARGET_BYTES - 100)}", 200),
    ],
    ids=lambda value: str(value)[:12],
)
async def test_long_targets_are_refused(client: httpx2.AsyncClient, target: str, status: int) -> None:
    assert (await client.get(target)).status_code == status


@pytest.mark.parametrize("headers", [{"Cookie": "a=b;" * 10_000}, {f"X-{number}": "a" * 100 for number in range(400)}])
async def test_large_headers_are_refused(client: httpx2.AsyncClient, headers: dict[str, str]) -> None:
    refused = await client.get("/health", headers=headers)

    assert refused.status_code == 431
    assert refused.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("host", ["localhost:8443", "localhost"])
@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/api/v1/users/", "/api/v1/users"),
        ("/api/v1/users/?page=1&x=%D0%B9", "/api/v1/users?page=1&x=%D0%B9"),
        ("/health///", "/health"),
        ("/tested-slash/%3Fa%2525/", "/tested-slash/%3Fa%2525"),
        ("/tested-folder/x", "/tested-folder/x/"),
    ],
)
async def test_trailing_slash_redirect_keeps_host_and_port(app: FastAPI, host: str, path: str, location: str) -> None:
    for pattern in ("/tested-slash/{name}", "/tested-folder/{name}/"):
        app.add_api_route(pattern, lambda name: name)

    async with open_client(app) as client:
        answer = await client.get(path, headers={"Host": host})
        followed = await client.get(answer.headers["location"])

    assert (answer.status_code, answer.headers["location"]) == (307, location)
    assert followed.status_code in {200, 401}


@pytest.mark.parametrize("path", ["//evil.example/", "//evil.example/x", "///", "//", "/%5Cevil.example/"])
async def test_no_redirect_leads_to_another_host(app: FastAPI, path: str) -> None:
    app.add_api_route("/{anything:path}", lambda anything: anything, methods=["DELETE"])
    app.router.routes.reverse()
    async with open_client(app) as client:
        request = client.build_request("GET", "/")
        request.url = httpx2.URL(scheme="http", host="localhost", raw_path=path.encode())
        answer = await client.send(request)

    assert not answer.headers.get("location", "").startswith(("//", "/\\", "http")), answer.headers
