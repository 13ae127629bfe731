import os
import socket
from collections.abc import Collection
from functools import cache

from app.core.config.server import ServerSettings
from app.core.hosts import bracket, map_proxies

FIRST_INHERITED_FD = 3
# Connections that wait to be accepted.
BACKLOG = 2048


def bind_address(settings: ServerSettings) -> str:
    """Where gunicorn listens, in its own notation."""
    if settings.unix_socket is not None:
        return f"unix:{settings.unix_socket}"
    return f"{bracket(settings.host)}:{settings.port}"


def listen(settings: ServerSettings) -> socket.socket:
    """Return a socket at HOST and PORT; as gunicorn's, one for all of IPv6 also takes IPv4 where the kernel can."""
    is_ipv6 = ":" in settings.host
    return socket.create_server(
        (settings.host, settings.port),
        family=socket.AF_INET6 if is_ipv6 else socket.AF_INET,
        backlog=BACKLOG,
        dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
    )


def trusted_proxies(settings: ServerSettings, families: Collection[int] | None = None) -> str:
    """Whose X-Forwarded headers count; the families are those of the sockets, where they are known.

    Whoever can open a unix socket is the proxy and has no address; over TCP only named addresses are trusted.
    """
    families = systemd_socket_families() if families is None else families
    # Windows has none.
    if families == {getattr(socket, "AF_UNIX", None)} or (not families and settings.unix_socket is not None):
        return "*"
    return ",".join(map_proxies(settings.forwarded_allow_ips))


# Once: gunicorn takes the variables away as it starts, and reads its configuration again at SIGHUP.
@cache
def systemd_socket_families() -> frozenset[int]:
    """What kinds of sockets systemd handed over (sd_listen_fds), if any."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return frozenset()
    return frozenset(_family(FIRST_INHERITED_FD + number) for number in range(int(count)))


def _family(fd: int) -> int:
    with socket.socket(fileno=os.dup(fd)) as inherited:
        return inherited.family
