"""Uploads: one file of a multipart body, streamed to the route without a copy in memory or on disk.

FastAPI reads a declared `UploadFile` before it runs any dependency, even for unauthenticated clients. Here the file is
a dependency, which a route declares after the one that authenticates the caller.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from app.core.errors import ContentTooLargeError, UnprocessableError, UnsupportedMediaTypeError
from app.core.http.schemas import is_blank

FORM_DATA = "multipart/form-data"
# Limit for the rest of the body: boundaries, headers and other fields.
MAX_OVERHEAD_BYTES = 64 * 1024
MAX_FILENAME_LENGTH = 200
MAX_SECONDS = 300
# RFC 2046 §5.1.1
MAX_BOUNDARY_LENGTH = 70


@dataclass(frozen=True)
class Upload:
    """A file that a client is sending. Do not trust its name and media type: the client chooses them."""

    # A base name without control characters, for display: do not use it in a path.
    filename: str
    media_type: str
    _chunks: AsyncIterator[bytes]

    def chunks(self) -> AsyncIterator[bytes]:
        """Return the content as it arrives. Iterate once and outside of a transaction: the client may be slow.

        The iteration raises ContentTooLargeError, or UnprocessableError if the body is malformed or incomplete. The
        caller must then discard the part of the file that it has stored.
        """
        return self._chunks


@dataclass(frozen=True)
class UploadField:
    """The dependency that `accept` returns; FeatureRoute documents it and sets the body limit of the route."""

    max_bytes: int
    media_types: tuple[str, ...]
    name: str
    max_seconds: float

    async def __call__(self, request: Request) -> Upload:
        """Read the body up to the start of the file; `Upload.chunks` reads the rest."""
        reader = _UploadReader(self, request)
        await reader.read_headers()
        return Upload(reader.filename, reader.media_type, reader.chunks())

    @property
    def max_body_bytes(self) -> int:
        return self.max_bytes + MAX_OVERHEAD_BYTES

    @property
    def request_body(self) -> dict[str, Any]:
        """The Request Body Object of the OpenAPI document."""
        schema = {
            "type": "object",
            "required": [self.name],
            "properties": {self.name: {"type": "string", "format": "binary"}},
        }
        encoding = {self.name: {"contentType": ", ".join(self.media_types)}}
        return {"required": True, "content": {FORM_DATA: {"schema": schema, "encoding": encoding}}}


def accept(*, max_bytes: int, media_types: Sequence[str], name: str = "file", max_seconds: float = MAX_SECONDS) -> Any:  # noqa: ANN401  # FastAPI declares the result of Depends as Any
    """Declare an upload: a file in the form field `name`, sent within `max_seconds`.

    `max_bytes` replaces MAX_BODY_BYTES for the route. Add the last segment of the route's path to the location for
    uploads in deploy/nginx/site.conf, and set a limit above `max_bytes` there.
    """
    return Depends(UploadField(max_bytes, tuple(media_types), name, max_seconds))


class _UploadReader:
    """Parses the body as it arrives, and buffers the bytes of the file that the route has not read yet."""

    def __init__(self, field: UploadField, request: Request) -> None:
        self._field = field
        self._body = request.stream()
        # A deadline, because each upload occupies one of MAX_CONCURRENT_REQUESTS.
        self._deadline = asyncio.get_running_loop().time() + field.max_seconds
        self._parser = self._create_parser(request)
        self._header_name = self._header_value = b""
        self._headers: dict[bytes, bytes] = {}
        self._is_in_file = self._has_file = self._is_complete = False
        self._pending: list[bytes] = []
        self._received_bytes = self._file_bytes = 0
        self.filename = self.media_type = ""

    def _create_parser(self, request: Request) -> MultipartParser:
        media_type, options = parse_options_header(request.headers.get("content-type"))
        if media_type != FORM_DATA.encode():
            raise UnsupportedMediaTypeError(f"The body must be {FORM_DATA}.")
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= MAX_BOUNDARY_LENGTH:
            raise UnprocessableError("The Content-Type header needs a valid boundary.", code="invalid-multipart")
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_header_name,
                "on_header_value": self._add_header_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_end": self._end_body,
            },
        )

    async def read_headers(self) -> None:
        while not self._has_file:
            if not await self._feed():
                raise UnprocessableError(
                    f"The form needs a file in the field {self._field.name}.", code="file-required"
                )

    async def chunks(self) -> AsyncIterator[bytes]:
        has_more = True
        while has_more:
            if self._pending:
                chunk = b"".join(self._pending)
                self._pending.clear()
                yield chunk
            has_more = await self._feed()

    async def _feed(self) -> bool:
        """Parse the next piece of the body; return False at its end."""
        try:
            async with asyncio.timeout_at(self._deadline):
                data = await anext(self._body, None)
        except TimeoutError as error:
            raise UnprocessableError(
                f"The upload took longer than {self._field.max_seconds} seconds. Send the file again over a faster"
                " connection.",
                code="upload-too-slow",
            ) from error
        except ClientDisconnect as error:
            raise UnprocessableError("The upload was interrupted. Send it again.", code="upload-interrupted") from error
        if data is None:
            if not self._is_complete:
                raise UnprocessableError("The multipart body is incomplete. Send it again.", code="invalid-multipart")
            return False
        self._received_bytes += len(data)
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise UnprocessableError("The multipart body is malformed.", code="invalid-multipart") from error
        self._check_size()
        return True

    def _check_size(self) -> None:
        if self._file_bytes > self._field.max_bytes:
            raise ContentTooLargeError(f"The file must not be larger than {self._field.max_bytes} bytes.")
        if self._received_bytes - self._file_bytes > MAX_OVERHEAD_BYTES:
            raise ContentTooLargeError(f"The form must have at most {MAX_OVERHEAD_BYTES} bytes besides the file.")

    def _begin_part(self) -> None:
        self._headers = {}
        self._is_in_file = False

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        # Browsers send an empty file name if no file was chosen.
        if options.get(b"name") != self._field.name.encode() or not options.get(b"filename"):
            return
        if self._has_file:
            raise UnprocessableError(
                f"The form must have only one file in the field {self._field.name}.", code="too-many-files"
            )
        media_type, _ = parse_options_header(self._headers.get(b"content-type"))
        self.media_type = media_type.decode("latin-1")
        if self.media_type not in self._field.media_types:
            accepted = ", ".join(self._field.media_types)
            raise UnsupportedMediaTypeError(f"The media type of the file must be one of {accepted}.")
        self.filename = _base_name(options[b"filename"].decode(errors="replace"))
        self._is_in_file = self._has_file = True

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_in_file:
            self._pending.append(data[start:end])
            self._file_bytes += end - start

    def _end_body(self) -> None:
        self._is_complete = True


def _base_name(sent: str) -> str:
    name = sent.replace("\\", "/").rpartition("/")[2]
    name = "".join(filter(str.isprintable, name))[:MAX_FILENAME_LENGTH].strip()
    return "file" if is_blank(name) or name in {".", ".."} else name
