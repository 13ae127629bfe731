from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.http.problems import problem_response


class ProblemDetailsMiddleware:
    """Converts plain-text errors of other middleware (hosts, CORS, body limit, request check) to problem documents."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal: Message | None = None

        async def rewrite(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and _is_plain_error(message):
                refusal = message
            elif refusal is None:
                await send(message)
            elif not message.get("more_body"):
                detail = message.get("body", b"").decode()
                await _problem_from(scope, refusal, detail)(scope, receive, send)

        await self.app(scope, receive, rewrite)


def _is_plain_error(message: Message) -> bool:
    content_type = dict(message["headers"]).get(b"content-type", b"")
    return bool(message["status"] >= 400 and content_type.startswith(b"text/plain"))


def _problem_from(scope: Scope, refusal: Message, detail: str) -> Response:
    kept = {name.decode(): value.decode() for name, value in refusal["headers"] if not name.startswith(b"content-")}
    return problem_response(scope, refusal["status"], detail, headers=kept)
