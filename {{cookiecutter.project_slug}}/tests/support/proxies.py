"""Servers in the test's own event loop: a service that gives one answer, and a proxy in front of it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Proxy:
    url: str
    # The request lines that clients sent to the proxy.
    asked: list[str] = field(default_factory=list)


@asynccontextmanager
async def run_service(answer: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Give every request the same answer; yields the port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer.encode())
        await writer.drain()

    async with _serve(handle, tls) as port:
        yield port


@asynccontextmanager
async def run_proxy(target_port: int) -> AsyncIterator[Proxy]:
    """Run an HTTP proxy that forwards requests for any host to the server on `target_port`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        proxy.asked.append(head.partition(b"\r\n")[0].decode())
        target_reader, target_writer = await asyncio.open_connection("127.0.0.1", target_port)
        if head.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            # The first line contains a complete URL instead of a path, which servers accept (RFC 9112, 3.2.2).
            target_writer.write(head)
        await asyncio.gather(_pass_on(reader, target_writer), _pass_on(target_reader, writer))

    async with _serve(handle) as port:
        proxy = Proxy(f"http://127.0.0.1:{port}")
        yield proxy


@asynccontextmanager
async def _serve(handle: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    connections: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handle(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.create_task(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


def set_proxy(monkeypatch: pytest.MonkeyPatch, url: str, no_proxy: str = "") -> None:
    """Set the proxy for this process; remove the lower-case variables, which take precedence."""
    for name, value in {"HTTP_PROXY": url, "HTTPS_PROXY": url, "ALL_PROXY": "", "NO_PROXY": no_proxy}.items():
        monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv(name, value)
