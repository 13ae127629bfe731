from starlette.types import Message, Send


class StatusRecorder:
    """Passes on what is sent to a client, and remembers the status."""

    # None until the answer has begun.
    status: int | None = None

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
