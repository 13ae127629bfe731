from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@asynccontextmanager
async def open_client(
    app: FastAPI, base_url: str = "http://localhost", address: str = "127.0.0.1", device: str = "tests"
) -> AsyncIterator[httpx2.AsyncClient]:
    """Yield a client. Like a server, run the lifespan and add its state to each request; ASGITransport does neither."""
    async with app.router.lifespan_context(app) as state:

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx2.ASGITransport(serve, client=(address, 12345))
        headers = {"User-Agent": device}
        async with httpx2.AsyncClient(transport=transport, base_url=base_url, headers=headers) as client:
            yield client


class HangUpMiddleware:
    """Simulate clients that disconnect before they have sent their body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def hang_up() -> Message:
            return {"type": "http.disconnect"}

        await self.app(scope, hang_up if scope["type"] == "http" else receive, send)
