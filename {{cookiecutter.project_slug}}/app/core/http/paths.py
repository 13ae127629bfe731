from collections.abc import Iterable, Sequence
from urllib.parse import quote

from fastapi.routing import iter_route_contexts
from starlette.responses import RedirectResponse
from starlette.routing import BaseRoute, Host, Match, Mount, Router
from starlette.types import ASGIApp, Receive, Scope, Send

# Assumed for static files and other mounted applications, which do not list their methods.
METHODS_OF_FILES = frozenset({"GET"})


def allowed_methods(scope: Scope, routes: Sequence[BaseRoute]) -> list[str]:
    """Return the methods of all routes at this path, for the header Allow."""
    # Match from the outermost application: within a mount, root_path includes the path of the mount.
    root_path = scope.get("app_root_path", scope.get("root_path", ""))
    methods = set(_methods_at({**scope, "root_path": root_path}, routes))
    return sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set()))


def _methods_at(scope: Scope, routes: Sequence[BaseRoute]) -> Iterable[str]:
    for route in iter_route_contexts(routes):
        match, child_scope = route.matches(scope)
        if match is Match.NONE:
            continue
        if isinstance(route.original_route, Mount | Host):
            yield from set(_methods_at({**scope, **child_scope}, route.routes)) or METHODS_OF_FILES
        else:
            yield from route.methods or ()


def redirect_slashes(router: Router) -> ASGIApp:
    """Return an application that adds or removes a trailing slash by a redirect; 404 if that path has no route either.

    The Location is relative: Starlette would build an absolute URL from the Host header, in which a proxy may omit the
    port.
    """

    async def redirect(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        other = path.rstrip("/") if path.endswith("/") else f"{path}/"
        # Do not redirect to a path such as //x, which browsers interpret as a host.
        is_local = other != "" and not other.startswith("//")
        if scope["type"] != "http" or not is_local or not _is_routed({**scope, "path": other}, router.routes):
            await router.not_found(scope, receive, send)
            return
        query = scope["query_string"].decode("latin-1")
        location = quote(other, errors="replace") + (f"?{query}" if query else "")
        await RedirectResponse(location)(scope, receive, send)

    return redirect


def _is_routed(scope: Scope, routes: Sequence[BaseRoute]) -> bool:
    return any(route.matches(scope)[0] is not Match.NONE for route in routes)
