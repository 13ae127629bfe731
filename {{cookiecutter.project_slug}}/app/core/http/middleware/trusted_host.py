from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import Receive, Scope, Send

from app.core.http.request import PROBE_PATHS


class ProbeFriendlyHostMiddleware(TrustedHostMiddleware):
    """Checks the Host header of all requests except probes.

    Probes may use any address of the service: their responses contain no links that a forged Host could change.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and PROBE_PATHS.match(scope["path"]):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)
