"""Rate limits of nginx, and bans of fail2ban."""

import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest

from tests.support.servers import DOMAIN, EMAIL, TOKEN, Server, reaches
from tests.support.serving import wait_until

pytestmark = pytest.mark.servers("postgresql")


# The site and its clients have addresses that are reserved for documentation; the server itself holds all of them.
SITE_ADDRESS = "2001:db8:ffff::1"


@pytest.fixture
def networks(server: Server) -> Iterator[tuple[list[str], list[str]]]:
    """Addresses of clients in two IPv6 networks: 60 in the first, 3 in the second."""
    crowd = [f"2001:db8:0:a::{number:x}" for number in range(1, 61)]
    others = [f"2001:db8:0:b::{number:x}" for number in range(1, 4)]
    addresses = [SITE_ADDRESS, *crowd, *others]
    batch = "printf 'address {{}} %s/128 dev lo\\n' {} | ip -6 -batch -".format(" ".join(addresses))
    server.machine.run(batch.format("add"))
    try:
        yield crowd, others
    finally:
        server.machine.run(f"{batch.format('del')}; fail2ban-client unban --all")


def ask_from(server: Server, sources: Sequence[str], path: str, *options: str) -> list[int]:
    """Send one request from each address, and return the statuses; 0 stands for no response."""
    curl = ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}\\n", "--interface", "{}"]
    curl += ["--max-time", "60", "--resolve", f"{DOMAIN}:443:[{SITE_ADDRESS}]", *options, f"https://{DOMAIN}{path}"]
    each = f"printf '%s\\n' {shlex.join(sources)} | xargs --max-procs=4 --replace={{}} {shlex.join(curl)} || true"
    return list(map(int, server.machine.run(each).split()))


GUESS = ("--data", "grant_type=password&username=nobody@example.com&password=wrong-password-123")


# Sends two incomplete requests from each address, and prints how many of them nginx refuses. nginx waits 10 seconds for
# the rest of a request, counted from the last byte.
HOLD_CONNECTIONS = """
import socket, ssl, sys, time
context = ssl._create_unverified_context()
domain, site, *sources = sys.argv[1:]
head = f"POST /api/v1/todos HTTP/1.1\\r\\nHost: {domain}\\r\\nContent-Length: 1000\\r\\n\\r\\n"
waiting = []
for source in sources * 2:
    plain = socket.create_connection((site, 443), timeout=30, source_address=(source, 0))
    waiting.append(context.wrap_socket(plain, server_hostname=domain))
for connection in waiting:
    connection.sendall(head.encode())
    connection.setblocking(False)

def is_refused(connection):
    try:
        return b" 429 " in connection.recv(4096)
    except ssl.SSLWantReadError:
        return False

for _ in range(5):
    time.sleep(0.5)
    waiting = [connection for connection in waiting if not is_refused(connection)]
    for connection in waiting:
        connection.send(b"x")
print(2 * len(sources) - len(waiting), flush=True)
time.sleep(600)
"""


@pytest.mark.servers("postgresql", "debian13")
def test_ipv6_network_is_limited_and_banned_as_one_client(
    server: Server, networks: tuple[list[str], list[str]]
) -> None:
    crowd, others = networks

    # One request from each address: no single address reaches the limit.
    asked = ask_from(server, crowd[:40], "/api/v1/users", "--json", "{}")
    elsewhere = ask_from(server, others, "/api/v1/users", "--json", "{}")

    assert 429 in asked
    assert elsewhere == [422] * 3
    banned = "fail2ban-client get nginx-limit-req banip"
    wait_until(lambda: server.machine.run(banned) == "2001:db8:0:a::/64", 60, lambda: server.machine.run(banned))
    wait_until(lambda: ask_from(server, crowd[-1:], "/health") == [0], 60, lambda: "its last address is banned")
    assert ask_from(server, others, "/health") == [200] * 3


@pytest.mark.servers("postgresql", "debian13")
def test_failed_sign_ins_of_an_ipv6_network_are_counted_together(
    server: Server, networks: tuple[list[str], list[str]]
) -> None:
    crowd, others = networks
    banned = "fail2ban-client get service banip"

    for client in crowd[:10]:
        ask_from(server, [client], TOKEN, *GUESS)
        # Slower than nginx's rate limit: requests above the limit count in another jail of fail2ban.
        time.sleep(1.1)

    wait_until(lambda: server.machine.run(banned) == "2001:db8:0:a::/64", 60, lambda: server.machine.run(banned))
    wait_until(lambda: ask_from(server, crowd[-1:], "/health") == [0], 60, lambda: "its last address is banned")
    assert ask_from(server, others[:1], "/health") == [200]


@pytest.mark.servers("postgresql", "debian13")
def test_connections_of_an_ipv6_network_are_limited_together(
    server: Server, networks: tuple[list[str], list[str]]
) -> None:
    crowd, others = networks
    program = f"python3 -c {shlex.quote(HOLD_CONNECTIONS)} {DOMAIN} {SITE_ADDRESS} {shlex.join(crowd[:45])}"
    ask = shlex.join(["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}\\n", "--interface"])
    url = f"--resolve {DOMAIN}:443:[{SITE_ADDRESS}] https://{DOMAIN}/health"

    refused, same, other = server.machine.run(
        f"""
        rm -f /root/count
        {program} > /root/count &
        timeout 120 bash -c 'until [[ -s /root/count ]]; do sleep 0.1; done'
        cat /root/count
        {ask} {crowd[-1]} {url}
        {ask} {others[0]} {url}
        kill %1
        """
    ).split()
    master = server.machine.run("systemctl show -P MainPID nginx")
    files = server.machine.run(
        f"for pid in $(pgrep -P {master} -f 'worker process$'); do grep '^Max open files' /proc/$pid/limits; done"
    )
    connections = re.findall(r"worker_connections (\d+);", server.machine.run("nginx -T 2>/dev/null"))

    assert (int(refused), same, other) == (90 - 50, "429", "200")
    assert connections == ["8192"]
    assert {line.split()[3] for line in files.splitlines()} == {"16384"}


@pytest.mark.servers("postgresql", "debian13")
def test_cross_site_requests_do_not_count_against_the_visitor(
    server: Server, networks: tuple[list[str], list[str]]
) -> None:
    client = networks[1][0]
    sign_up = ("/api/v1/users", "--json", "{}")
    foreign = ("--header", "Sec-Fetch-Site: cross-site", "--header", "Origin: https://evil.example")

    from_page = ask_from(server, [client] * 60, *sign_up, *foreign)
    own = ask_from(server, [client] * 5, *sign_up)

    # Cross-site requests have a separate limit, so a client cannot avoid all limits by sending cross-site headers.
    assert 429 in from_page
    assert own == [422] * 5
    assert client not in server.machine.run("cat /var/log/nginx/limited.log")


def test_ssh_ban_closes_all_ports_and_service_ban_closes_http(server: Server) -> None:
    rules = {}
    for jail in ("sshd", "service"):
        server.machine.run(f"fail2ban-client set {jail} banip 192.0.2.7")
        wait = f"until iptables -S INPUT | grep 'f2b-{jail}'; do sleep 0.1; done"
        rules[jail] = server.machine.run(f"timeout 60 bash -c {shlex.quote(wait)}")
        server.machine.run(f"fail2ban-client set {jail} unbanip 192.0.2.7")

    assert rules["sshd"] == "-A INPUT -p tcp -j f2b-sshd"
    assert rules["service"] == "-A INPUT -p tcp -m multiport --dports 80,443 -j f2b-service"


def check_ban(server: Server, jail: str, offend: Callable[[], object]) -> None:
    ours = json.loads(server.machine.run("tail -n 1 /var/log/nginx/access.log"))["client"]
    try:
        # The ban may already refuse the last requests.
        with suppress(OSError):
            offend()
        wait_until(lambda: not reaches(server.site.address, 443), 30, lambda: f"{jail} has banned us")
        assert ours in server.machine.run(f"fail2ban-client status {jail}")
        assert reaches(server.site.address, 22)
    finally:
        server.machine.run(f"fail2ban-client set {jail} unbanip {ours}")
    server.site.wait()


def test_repeated_failed_sign_ins_lead_to_a_ban(server: Server) -> None:
    form = {"grant_type": "password", "username": EMAIL, "password": "wrong password 123"}

    def offend() -> None:
        for _ in range(10):
            server.site.request("POST", TOKEN, form, form=True)
            # Slower than nginx's rate limit: requests above the limit count in another jail of fail2ban.
            time.sleep(1.1)

    server.site.request("GET", "/health")
    try:
        check_ban(server, "service", offend)
    finally:
        server.machine.run("fail2ban-client reload --unban")


def test_repeatedly_exceeding_the_rate_limit_leads_to_a_ban(server: Server) -> None:
    form = {"grant_type": "password", "username": EMAIL, "password": "short"}

    def offend() -> None:
        statuses = [server.site.request("POST", TOKEN + "x", form, form=True).status for _ in range(3)]
        statuses += [server.site.request("POST", "/api/v1/users", {}).status for _ in range(40)]
        assert 429 in statuses

    server.site.request("GET", "/health")
    try:
        check_ban(server, "nginx-limit-req", offend)
    finally:
        server.machine.run("fail2ban-client reload --unban")
