from starlette.types import Message, Send


class StatusRecorder:
    """A `send` that forwards all messages, and records the status of the response."""

    # None until the response has started.
    status: int | None = None

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
