import os
import socket
from collections.abc import Collection
from functools import cache

from app.core.config.server import ServerSettings
from app.core.hosts import bracket, map_proxies

FIRST_INHERITED_FD = 3
BACKLOG = 2048


def bind_address(settings: ServerSettings) -> str:
    """Return the listening address in gunicorn's notation."""
    if settings.unix_socket is not None:
        return f"unix:{settings.unix_socket}"
    return f"{bracket(settings.host)}:{settings.port}"


def listen(settings: ServerSettings) -> socket.socket:
    """Return a socket that listens on HOST and PORT; an IPv6 one is dual-stack where possible, as gunicorn's is."""
    is_ipv6 = ":" in settings.host
    return socket.create_server(
        (settings.host, settings.port),
        family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
        backlog=BACKLOG,
        dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
    )


def trusted_proxies(settings: ServerSettings, families: Collection[int] | None = None) -> str:
    """Return the proxies whose X-Forwarded headers are trusted, or "*" for all clients.

    All clients of a unix socket are trusted: they have no address, and only the proxy may open the socket. Over TCP,
    only FORWARDED_ALLOW_IPS are trusted. `families` are the address families of the listening sockets; by default,
    of the sockets that systemd passed. Without such sockets, UNIX_SOCKET decides.
    """
    families = systemd_socket_families() if families is None else families
    # Windows has no AF_UNIX.
    if families == {getattr(socket, "AF_UNIX", None)} or (not families and settings.unix_socket is not None):
        return "*"
    return ",".join(map_proxies(settings.forwarded_allow_ips))


# Cached: gunicorn removes the LISTEN_ variables when it starts, and loads its configuration again at SIGHUP.
@cache
def systemd_socket_families() -> frozenset[int]:
    """Return the address families of the sockets that systemd passed (sd_listen_fds), if any."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return frozenset()
    return frozenset(_family(FIRST_INHERITED_FD + number) for number in range(int(count)))


def _family(fd: int) -> int:
    with socket.socket(fileno=os.dup(fd)) as inherited:
        return inherited.family
