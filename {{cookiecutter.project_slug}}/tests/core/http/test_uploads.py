"""Uploads to a sample route in the whole application: valid and rejected requests."""

import asyncio
import io
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from typing import Annotated

import httpx2
import pytest
from fastapi import FastAPI, Form
from prometheus_client import REGISTRY
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.accounts.dependencies import CurrentUser
from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.http import uploads
from app.core.http.problems import problem_responses
from app.core.http.routing import FeatureRouter
from app.core.http.uploads import FORM_DATA, MAX_OVERHEAD_BYTES, Upload
from tests.support.accounts import TOKEN_PATH, Account
from tests.support.applications import create_app
from tests.support.clients import open_client
from tests.support.databases import make_settings

ORIGIN = "https://app.example.com"
BOUNDARY = "------------------------d74496d66958873e"
MULTIPART = f"{FORM_DATA}; boundary={BOUNDARY}"
MAX_BYTES = 10 * 1024 * 1024
MAX_BODY_BYTES = 1000
RECEIPT = "/api/v1/tested-uploads/7/receipt"
LARGE = "/api/v1/tested-uploads/7/large"
NOTE = "/api/v1/tested-uploads/7/note"
TITLE = "/api/v1/tested-uploads/7/title"
CHUNK = 32 * 1024
PNG = b"\x89PNG\r\n\x1a\n"

ReceiptUpload = Annotated[Upload, uploads.accept(max_bytes=MAX_BYTES, media_types=("image/png", "application/pdf"))]
LargeUpload = Annotated[
    Upload, uploads.accept(max_bytes=64 * 1024 * 1024, media_types=("application/pdf",), name="scan")
]
HastyUpload = Annotated[Upload, uploads.accept(max_bytes=1000, media_types=("image/png",), max_seconds=0.2)]

router = FeatureRouter(prefix="/tested-uploads/{project_id}")


async def describe(upload: Upload) -> dict[str, object]:
    digest, size = sha256(), 0
    async for chunk in upload.chunks():
        digest.update(chunk)
        size += len(chunk)
    return {
        "filename": upload.filename,
        "media_type": upload.media_type,
        "size": size,
        "sha256": digest.hexdigest(),
        "again": [chunk async for chunk in upload.chunks()],
    }


@router.put("/receipt", responses=problem_responses(401))
async def replace_receipt_in_test(project_id: int, user: CurrentUser, upload: ReceiptUpload) -> dict[str, object]:
    return {"project_id": project_id, **await describe(upload)}


@router.put("/large")
async def replace_large_in_test(user: CurrentUser, upload: LargeUpload) -> dict[str, object]:
    return await describe(upload)


@router.put("/hasty")
async def replace_hastily_in_test(user: CurrentUser, upload: HastyUpload) -> dict[str, object]:
    return await describe(upload)


@router.put("/unread")
async def ignore_receipt_in_test(user: CurrentUser, upload: ReceiptUpload) -> str:
    return upload.filename


@router.put("/note")
async def replace_note_in_test(user: CurrentUser, note: dict[str, str]) -> dict[str, str]:
    return note


@router.put("/title")
async def replace_title_in_test(user: CurrentUser, title: Annotated[str, Form()]) -> str:
    return title


@pytest.fixture
def settings(migrated_url: str) -> Settings:
    return make_settings(migrated_url, max_body_bytes=MAX_BODY_BYTES, cors_origins=ORIGIN)


@pytest.fixture
def app(settings: Settings, database: Database) -> FastAPI:
    return make_app(settings, database)


def make_app(settings: Settings, database: Database) -> FastAPI:
    app = create_app(settings, database)
    app.include_router(router, prefix="/api/v1", responses=problem_responses(413, 415, 422, 503))
    return app


def form_part(
    content: bytes, *, name: str = "file", filename: str | None = "receipt.png", media_type: str | None = "image/png"
) -> bytes:
    disposition = f'Content-Disposition: form-data; name="{name}"'
    if filename is not None:
        disposition += f'; filename="{filename}"'
    lines = [f"--{BOUNDARY}", disposition]
    if media_type is not None:
        lines.append(f"Content-Type: {media_type}")
    return "\r\n".join([*lines, "", ""]).encode() + content + b"\r\n"


def make_body(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


class Sending:
    """A body that is sent in chunks without Content-Length; `sent_bytes` counts the bytes that were read."""

    def __init__(self, *pieces: bytes, filler_bytes: int = 0) -> None:
        self._pieces = pieces
        self._filler_bytes = filler_bytes
        self.sent_bytes = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks():
            self.sent_bytes += len(chunk)
            yield chunk

    def _chunks(self) -> Iterator[bytes]:
        """Yield the first piece, then zeros as a filler, then the other pieces."""
        yield self._pieces[0]
        for start in range(0, self._filler_bytes, CHUNK):
            yield bytes(min(CHUNK, self._filler_bytes - start))
        yield from self._pieces[1:]


def send_zeros(size: int, **part: str) -> Sending:
    head, _, tail = make_body(form_part(b"|", **part)).partition(b"|")
    return Sending(head, tail, filler_bytes=size)


async def put(
    client: httpx2.AsyncClient,
    user: Account | None,
    content: bytes | Sending,
    path: str = RECEIPT,
    media_type: str = MULTIPART,
    **headers: str,
) -> httpx2.Response:
    authorization = user.headers if user else {}
    return await client.put(
        path, content=content, headers={"Content-Type": media_type, "Origin": ORIGIN, **authorization, **headers}
    )


def assert_refused(response: httpx2.Response, status: int, detail: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.json()["status"] == status
    assert detail in response.json()["detail"]
    assert response.json()["request_id"] == response.headers["x-request-id"]


def count(path: str, status: int) -> float:
    labels = {"method": "PUT", "route": path, "status": str(status)}
    return REGISTRY.get_sample_value("http_requests_total", labels) or 0


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100, 10_000])
async def test_upload_is_complete_for_any_chunk_size(client: httpx2.AsyncClient, user: Account, size: int) -> None:
    # The content contains many byte sequences that look like the boundary, or like a part of it.
    content = (PNG + f"\r\n--{BOUNDARY[:-1]}x\r\n--\r\r\n".encode() + bytes(range(256))) * 3
    body = make_body(form_part(b"x" * 100, name="comment", filename=None, media_type=None), form_part(content))
    pieces = [body[start : start + size] for start in range(0, len(body), size)] if size else [body]

    response = await put(client, user, Sending(*pieces))

    assert response.status_code == 200, response.text
    assert response.json() == {
        "project_id": 7,
        "filename": "receipt.png",
        "media_type": "image/png",
        "size": len(content),
        "sha256": sha256(content).hexdigest(),
        "again": [],
    }


async def test_empty_file_of_ordinary_http_client_is_accepted(client: httpx2.AsyncClient, user: Account) -> None:
    sent = await client.put(RECEIPT, files={"file": ("Büro.pdf", b"", "application/pdf")}, headers=user.headers)

    assert sent.status_code == 200, sent.text
    assert sent.json()["filename"] == "Büro.pdf"
    assert sent.json()["size"] == 0


async def test_large_upload_is_not_held_in_memory(client: httpx2.AsyncClient, user: Account) -> None:
    size = 32 * 1024 * 1024
    body = send_zeros(size, name="scan", media_type="application/pdf")

    tracemalloc.start()
    try:
        response = await put(client, user, body, LARGE)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert response.status_code == 200, response.text
    assert response.json()["size"] == size
    assert peak < 4 * 1024 * 1024


async def test_file_of_maximum_size_is_accepted_and_one_byte_more_is_refused(
    client: httpx2.AsyncClient, user: Account
) -> None:
    taken = await put(client, user, send_zeros(MAX_BYTES))
    refused = await put(client, user, send_zeros(MAX_BYTES + 1))

    assert taken.json()["size"] == MAX_BYTES
    assert_refused(refused, 413, f"{MAX_BYTES} bytes")


async def test_endless_file_is_refused_at_maximum_size(client: httpx2.AsyncClient, user: Account) -> None:
    before = count("/api/v1/tested-uploads/{project_id}/receipt", 413)
    body = send_zeros(10 * MAX_BYTES)

    response = await put(client, user, body)

    assert_refused(response, 413, f"{MAX_BYTES} bytes")
    assert body.sent_bytes <= MAX_BYTES + 2 * CHUNK
    assert count("/api/v1/tested-uploads/{project_id}/receipt", 413) == before + 1


async def test_content_length_above_maximum_is_refused_before_body_is_read(
    client: httpx2.AsyncClient, user: Account
) -> None:
    body = send_zeros(2 * MAX_BYTES)

    response = await put(client, user, body, **{"Content-Length": str(2 * MAX_BYTES)})

    assert_refused(response, 413, "Content Too Large")
    assert body.sent_bytes == 0


async def test_too_many_bytes_besides_the_file_are_refused(client: httpx2.AsyncClient, user: Account) -> None:
    large_field = form_part(bytes(MAX_OVERHEAD_BYTES), name="comment", filename=None, media_type=None)
    small_fields = [form_part(b"", name="c", filename=None, media_type=None)] * 1000
    epilogue = Sending(make_body(form_part(PNG)), filler_bytes=MAX_BYTES)

    answers = [
        await put(client, user, make_body(large_field, form_part(PNG))),
        await put(client, user, make_body(form_part(PNG), large_field)),
        await put(client, user, make_body(*small_fields, form_part(PNG))),
        await put(client, user, Sending(*[b"\r\n" * 1000] * 100)),
        await put(client, user, epilogue),
    ]

    for answer in answers:
        assert_refused(answer, 413, "bytes besides the file")
    assert epilogue.sent_bytes <= MAX_OVERHEAD_BYTES + 2 * CHUNK


async def test_an_anonymous_client_is_refused_before_its_body_is_read(client: httpx2.AsyncClient) -> None:
    body = send_zeros(MAX_BYTES)

    response = await put(client, None, body)
    of_another_kind = await put(client, None, b"{}", media_type="application/json")

    assert_refused(response, 401, "Not authenticated")
    assert body.sent_bytes == 0
    assert_refused(of_another_kind, 401, "Not authenticated")


@pytest.mark.parametrize("media_type", ["image/png", "application/json", "application/x-www-form-urlencoded", "", ";"])
async def test_body_that_is_not_multipart_is_refused(
    client: httpx2.AsyncClient, user: Account, media_type: str
) -> None:
    assert_refused(await put(client, user, PNG, media_type=media_type), 415, "The body must be multipart/form-data.")


async def test_a_body_without_a_media_type_is_refused(client: httpx2.AsyncClient, user: Account) -> None:
    response = await client.put(RECEIPT, headers={**user.headers, "Origin": ORIGIN})

    assert_refused(response, 415, "The body must be multipart/form-data.")


@pytest.mark.parametrize("media_type", ["image/gif", "text/html", "image/png/x", "", None])
async def test_file_of_unaccepted_media_type_is_refused(
    client: httpx2.AsyncClient, user: Account, media_type: str | None
) -> None:
    response = await put(client, user, make_body(form_part(PNG, media_type=media_type)))

    assert_refused(response, 415, "The media type of the file must be one of image/png, application/pdf.")


async def test_media_type_of_file_ignores_case_and_parameters(client: httpx2.AsyncClient, user: Account) -> None:
    response = await put(client, user, make_body(form_part(PNG, media_type="Image/PNG; q=1")))

    assert response.json()["media_type"] == "image/png"


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [form_part(PNG, name="other")],
        [form_part(PNG, filename=None)],
        [form_part(b"", filename="", media_type="application/octet-stream")],
        [b"--" + BOUNDARY.encode() + b"\r\n\r\n" + PNG + b"\r\n"],
    ],
    ids=["no part", "another name", "no file name", "no file chosen", "no headers"],
)
async def test_a_form_without_the_file_is_refused(
    client: httpx2.AsyncClient, user: Account, parts: list[bytes]
) -> None:
    assert_refused(await put(client, user, make_body(*parts)), 422, "a file in the field file")


async def test_two_files_are_refused(client: httpx2.AsyncClient, user: Account) -> None:
    response = await put(client, user, make_body(form_part(PNG), form_part(PNG)))

    assert_refused(response, 422, "one file")


WHOLE = make_body(form_part(PNG))


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "incomplete"),
        (WHOLE[:10], "incomplete"),
        (WHOLE[: WHOLE.index(PNG) + 3], "incomplete"),
        (WHOLE[: -len("--\r\n")], "incomplete"),
        (b"not a form", "malformed"),
        (WHOLE.replace(b"Content-Type", b"Content Type"), "malformed"),
        (make_body(form_part(PNG, filename="x" * 5000)), "malformed"),
        (WHOLE.replace(BOUNDARY.encode(), b"another"), "malformed"),
    ],
)
async def test_a_body_that_is_broken_is_refused(
    client: httpx2.AsyncClient, user: Account, logs: io.StringIO, body: bytes, detail: str
) -> None:
    response = await put(client, user, body)

    assert_refused(response, 422, detail)
    assert [json.loads(line)["level"] for line in logs.getvalue().splitlines()[-1:]] == ["info"]
    assert '"level": "warning"' not in logs.getvalue()


@pytest.mark.parametrize("parameters", ["", "; boundary=", f"; boundary={'x' * 300}"])
async def test_a_form_without_a_boundary_is_refused(client: httpx2.AsyncClient, user: Account, parameters: str) -> None:
    assert_refused(await put(client, user, WHOLE, media_type=FORM_DATA + parameters), 422, "boundary")


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("/etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("C:\\Users\\ada\\receipt.png", "receipt.png"),
        ("..", "file"),
        ("a/", "file"),
        (" \t ", "file"),
        ("\N{HANGUL FILLER}", "file"),
        ("a\x00b\x1b[31m\u202egnp.png", "ab[31mgnp.png"),
        ("é" * 300 + ".png", "é" * 200),
        ("quo%22te.png", "quo%22te.png"),
    ],
)
async def test_file_name_is_sanitized(client: httpx2.AsyncClient, user: Account, sent: str, kept: str) -> None:
    response = await put(client, user, make_body(form_part(PNG, filename=sent)))

    assert response.json()["filename"] == kept


async def test_file_name_that_is_not_utf8_is_accepted(client: httpx2.AsyncClient, user: Account) -> None:
    response = await put(client, user, WHOLE.replace(b"receipt.png", b"B\xfcro.png"))

    assert response.json()["filename"] == "B\ufffdro.png"


def hang_up(app: FastAPI, messages: int) -> FastAPI:
    """Simulate clients that disconnect after this number of messages of their request body."""

    class HangUpMiddleware:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            received = 0

            async def receive_some() -> Message:
                nonlocal received
                received += 1
                return await receive() if received <= messages else {"type": "http.disconnect"}

            await self.app(scope, receive_some if scope["type"] == "http" else receive, send)

    app.add_middleware(HangUpMiddleware)
    return app


@pytest.mark.parametrize("messages", [0, 1, 2])
async def test_client_disconnect_is_not_logged_as_error(
    settings: Settings, database: Database, user: Account, logs: io.StringIO, messages: int
) -> None:
    async with open_client(hang_up(make_app(settings, database), messages)) as client:
        response = await put(client, user, send_zeros(CHUNK))

    assert_refused(response, 422, "interrupted")
    assert '"level": "error"' not in logs.getvalue()


@pytest.mark.parametrize(
    "pieces", [[b""], [make_body(form_part(b"half"))[:-60]]], ids=["before the file", "in the file"]
)
async def test_upload_that_takes_too_long_is_refused(
    client: httpx2.AsyncClient, user: Account, pieces: list[bytes]
) -> None:
    async def stall() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        await asyncio.Event().wait()

    response = await client.put(
        "/api/v1/tested-uploads/7/hasty",
        content=stall(),
        headers={"Content-Type": MULTIPART, "Origin": ORIGIN, **user.headers},
    )

    assert_refused(response, 422, "took longer than 0.2 seconds")


async def test_route_can_respond_without_reading_the_file(client: httpx2.AsyncClient, user: Account) -> None:
    body = send_zeros(MAX_BYTES)

    response = await put(client, user, body, "/api/v1/tested-uploads/7/unread")

    assert response.json() == "receipt.png"
    assert body.sent_bytes < 2 * CHUNK


async def test_no_other_route_takes_a_form_with_files(client: httpx2.AsyncClient, user: Account) -> None:
    json_route = await put(client, user, WHOLE, NOTE)
    form_route = await put(client, user, WHOLE, TITLE)
    token_route = await client.post(TOKEN_PATH, content=WHOLE, headers={"Content-Type": MULTIPART})

    assert_refused(json_route, 415, "The body must be application/json.")
    assert_refused(form_route, 415, "The body must be application/x-www-form-urlencoded.")
    assert token_route.status_code == 400
    assert token_route.json()["error"] == "invalid_request"


@pytest.mark.parametrize("has_length", [True, False])
@pytest.mark.parametrize(
    ("method", "path", "media_type"),
    [
        ("PUT", NOTE, "application/json"),
        ("POST", TOKEN_PATH, "application/x-www-form-urlencoded"),
        ("PUT", "/api/v1/tested-uploads/7/receipt/more", MULTIPART),
        ("POST", RECEIPT, MULTIPART),
        ("POST", "/sign-in", "application/x-www-form-urlencoded"),
    ],
)
async def test_body_limit_applies_to_every_other_path(
    client: httpx2.AsyncClient, user: Account, method: str, path: str, media_type: str, *, has_length: bool
) -> None:
    body = Sending(b" ", filler_bytes=2 * MAX_BYTES)
    length = {"Content-Length": str(MAX_BODY_BYTES + 1)} if has_length else {}

    response = await client.request(
        method, path, content=body, headers={**user.headers, "Content-Type": media_type, **length}
    )

    # Without a matching route or method, there is no reason to read the body.
    assert response.status_code == 413 or (not has_length and response.status_code in {404, 405})
    assert response.headers["content-type"] == "application/problem+json"
    assert body.sent_bytes <= CHUNK + 1


async def test_openapi_describes_upload_form(app: FastAPI) -> None:
    document = app.openapi()

    receipt = document["paths"]["/api/v1/tested-uploads/{project_id}/receipt"]["put"]
    assert receipt["requestBody"] == {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                },
                "encoding": {"file": {"contentType": "image/png, application/pdf"}},
            }
        },
    }
    assert receipt["responses"].keys() >= {"200", "401", "413", "415", "422"}
    assert [each["name"] for each in receipt["parameters"]] == ["project_id"]
    large = document["paths"]["/api/v1/tested-uploads/{project_id}/large"]["put"]["requestBody"]
    assert large["content"]["multipart/form-data"]["schema"]["required"] == ["scan"]
