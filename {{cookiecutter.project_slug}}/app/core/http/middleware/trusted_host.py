from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import Receive, Scope, Send

from app.core.http.request import PROBE_PATHS


class ProbeFriendlyHostMiddleware(TrustedHostMiddleware):
    """Checks the Host header, except of probes, which may use any address: their responses contain no links."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and PROBE_PATHS.match(scope["path"]):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
