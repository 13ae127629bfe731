import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Process HEAD as GET, and send no body. A stream is cancelled as if the client had disconnected."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        has_body, has_started = True, asyncio.Event()

        async def receive_until_started() -> Message:
            nonlocal has_body
            if has_body:
                message = await receive()
                has_body = bool(message.get("more_body"))
                return message
            await has_started.wait()
            return {"type": "http.disconnect"}

        async def send_head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body"})
                has_started.set()
            # Yield to the event loop, so that the stream can be cancelled.
            await asyncio.sleep(0)

        # Starlette checks for disconnects during a stream only with an ASGI version below 2.4.
        asgi = {**scope.get("asgi", {}), "spec_version": "2.3"}
        # A copy, because the server reads the method from the original scope when it sends the response.
        get_scope = {**scope, "method": "GET", "asgi": asgi}
        try:
            await self.app(get_scope, receive_until_started, send_head)
        finally:
            # Copy the endpoint back: MetricsMiddleware, which wraps this middleware, counts requests by endpoint.
            if "endpoint" in get_scope:
                scope["endpoint"] = get_scope["endpoint"]
