"""Validates the hosts, origins, proxies and URLs in the settings.

Hosts and origins are also normalized, so that they equal what clients send in Host and Origin (lower case, Punycode, no
default port).
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from urllib.parse import SplitResult, urlsplit

import idna

# Underscores are invalid in DNS host names, but container networks use them.
HOST_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.|\Z))+(?<!\.)")
DEFAULT_PORTS = {"http": 80, "https": 443}
# IPv4 addresses as a dual-stack socket reports them.
IPV4_MAPPED = IPv6Network("::ffff:0:0/96")


def normalize_host(text: str) -> str:
    """Return a name in lower case and Punycode, or an address without brackets; raises ValueError."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") and ":" in text else text
    with suppress(ValueError):
        return str(ip_address(bare))
    try:
        name = text if text.isascii() else idna.encode(text, uts46=True).decode()
    except idna.IDNAError:
        raise ValueError("is not a valid international domain name: check the spelling, or write Punycode") from None
    name = name.lower()
    # A name may end with a dot, which keeps resolvers from appending search domains.
    relative = name.removesuffix(".")
    # Clients read a name that ends with a number as an IPv4 address.
    if not HOST_NAME.fullmatch(relative) or relative.rpartition(".")[2].isdecimal():
        raise ValueError("must be a host alone, such as example.com or 192.0.2.1: no scheme, port, path or space")
    return name


def normalize_host_header(pattern: str) -> str:
    """Return an allowed host as a Host header names it, without a port; wildcards are kept. Raises ValueError."""
    if pattern == "*":
        return pattern
    suffix = pattern.removeprefix("*.")
    if "*" in suffix:
        raise ValueError("may contain a wildcard only as the whole first label, as in *.example.com")
    host = normalize_host(suffix).removesuffix(".")
    if suffix != pattern and is_address(host):
        raise ValueError("may contain a wildcard only before a domain name, not before an IP address")
    return pattern[: -len(suffix)] + bracket(host)


def normalize_origin(text: str) -> str:
    """Return an origin as browsers send it; raises ValueError."""
    if text == "*":
        return text
    if "*" in text:
        raise ValueError("must not contain wildcards: list each origin, or use * for all")
    url = _split(text)
    if url is None or url.geturl().lower().removesuffix("/") != f"{url.scheme}://{url.netloc}".lower():
        raise ValueError("must be a scheme and a host, perhaps with a port, such as https://example.com")
    suffix = "" if url.port in (None, DEFAULT_PORTS.get(url.scheme)) else f":{url.port}"
    return f"{url.scheme}://{bracket(normalize_host(url.hostname or '').removesuffix('.'))}{suffix}"


def check_url(text: str) -> str:
    """Raise ValueError unless the text is an http(s) URL without query and fragment."""
    url = _split(text)
    if url is None or url.scheme not in DEFAULT_PORTS or url.query or url.fragment or re.search(r"[\s?#]", text):
        raise ValueError("must be http:// or https:// and a host, perhaps with a port and a path, and nothing else")
    normalize_host(url.hostname or "")
    return text


def _split(text: str) -> SplitResult | None:
    """Return the parts of a URL; None if it is invalid, has no host, or has user information or port 0."""
    try:
        url = urlsplit(text)
        is_usable = bool(url.hostname) and url.port != 0 and "@" not in url.netloc
    except ValueError:
        return None
    return url if is_usable else None


def normalize_proxies(texts: Iterable[str]) -> tuple[str, ...]:
    """Normalize addresses and networks; raises ValueError if one is invalid, or if they cover all IPv4 addresses."""
    try:
        networks = [ip_network(text) for text in texts]
    except ValueError:
        raise ValueError(
            "must be IP addresses or networks, such as 192.0.2.1 or 10.0.0.0/8: no host names, and networks with their"
            " first address (10.0.0.0/8, not 10.0.0.1/8)"
        ) from None
    of_version_4 = collapse_addresses(network for network in networks if isinstance(network, IPv4Network))
    of_version_6 = collapse_addresses(network for network in networks if isinstance(network, IPv6Network))
    if any(network.prefixlen == 0 for network in of_version_4) or any(map(IPV4_MAPPED.subnet_of, of_version_6)):
        raise ValueError(
            "must not cover all addresses, because any client could then forge X-Forwarded-For: list only the proxies"
        )
    return tuple(str(network).removesuffix(f"/{network.max_prefixlen}") for network in networks)


def map_proxies(proxies: Iterable[str]) -> tuple[str, ...]:
    """Return the proxies, and each IPv4 one also as an IPv4-mapped IPv6 address, which dual-stack sockets report."""
    proxies = tuple(proxies)
    networks = [ip_network(proxy) for proxy in proxies]
    mapped = (
        f"::ffff:{network.network_address}/{IPV4_MAPPED.prefixlen + network.prefixlen}"
        for network in networks
        if isinstance(network, IPv4Network)
    )
    return (*proxies, *(network.removesuffix("/128") for network in mapped))


def is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
