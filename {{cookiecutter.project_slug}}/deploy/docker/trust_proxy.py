"""Run a command with FORWARDED_ALLOW_IPS set to the network of the proxy.

The address of the proxy may change, but its network is known: it is the only network of this container with a default
gateway, and only the proxy and the application are attached to it.
Every address of this network is trusted except the gateway, because requests from programs on the host come from it.
"""

import os
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

ROUTES = Path("/proc/net/route")
NONE = "00000000"


def trusted_networks(routes: str) -> list[IPv4Network]:
    rows = [line.split() for line in routes.splitlines()[1:]]
    gateways = {row[0]: address(row[2]) for row in rows if row[1] == NONE != row[2]}
    networks = [
        part
        for row in rows
        if row[0] in gateways and row[2] == NONE
        for part in IPv4Network(f"{address(row[1])}/{address(row[7])}").address_exclude(IPv4Network(gateways[row[0]]))
    ]
    return sorted(networks)


def address(number: str) -> IPv4Address:
    return IPv4Address(int(number, 16).to_bytes(4, sys.byteorder))


def main() -> None:
    if "FORWARDED_ALLOW_IPS" not in os.environ:
        networks = trusted_networks(ROUTES.read_text(encoding="ascii"))
        if not networks:
            sys.exit("No network has a default route, so the proxy's network is unknown: set FORWARDED_ALLOW_IPS.")
        os.environ["FORWARDED_ALLOW_IPS"] = ",".join(map(str, networks))
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  # the command of compose.yaml


if __name__ == "__main__":
    main()
