"""The client's address, which only nginx may report to the application."""

from uuid import uuid4

from tests.support.containers import DOMAIN, Stack, address_in, describe_network, find_in_log, run_docker

FORGED = {name: "6.6.6.6" for name in ("X-Forwarded-For", "X-Real-IP")} | {"Forwarded": "for=6.6.6.6"}


def test_forged_client_address_is_ignored(stack: Stack) -> None:
    path = f"/api/v1/{uuid4().hex}"

    stack.request("GET", path, headers=FORGED)

    seen = logged_client(stack, path)
    (noted,) = find_in_log(stack, "proxy", rf'"client":"([^"]+)".*"path":"{path}"')
    assert "6.6.6.6" not in stack.compose("logs", "--no-log-prefix", "app", "proxy")
    assert seen == noted != address_in(stack, "proxy", "front")


def logged_client(stack: Stack, path: str) -> str:
    """Return the client's address in the application's log."""
    (client,) = find_in_log(stack, "app", rf'"path": "{path}".*"client": "([^"]+)"')
    return client


def request_without_proxy(url: str) -> list[str]:
    headers = FORGED | {"Host": DOMAIN}
    code = f"import urllib.request as u; u.urlopen(u.Request({url!r}, headers={headers}), timeout=30)"
    return ["python", "-c", code]


def test_application_ignores_client_addresses_from_other_containers(stack: Stack) -> None:
    path = f"/api/v1/{uuid4().hex}"

    output = stack.execute("backup", *request_without_proxy(f"http://app:8000{path}"), check=False)

    assert "404" in output
    assert logged_client(stack, path) == address_in(stack, "backup", "back")


def test_application_ignores_client_addresses_from_programs_on_the_host(stack: Stack) -> None:
    path = f"/api/v1/{uuid4().hex}"
    command = request_without_proxy(f"http://{address_in(stack, 'app', 'front')}:8000{path}")

    output = run_docker("run", "--rm", "--network=host", stack.image, *command, check=False)

    assert "404" in output
    assert logged_client(stack, path) == describe_network(stack, "front")["IPAM"]["Config"][0]["Gateway"]


def test_start_fails_if_no_network_identifies_the_proxy(stack: Stack) -> None:
    output = run_docker(
        *("run", "--rm", "--network=none", stack.image, "python", "-I", "trust_proxy.py", "echo", "started"),
        check=False,
    )

    assert output == "No network has a default route, so the proxy's network is unknown: set FORWARDED_ALLOW_IPS.\n"


def test_proxy_with_a_new_address_is_trusted(stack: Stack, manual: dict[str, list[str]]) -> None:
    before = address_in(stack, "proxy", "front")
    path = f"/api/v1/{uuid4().hex}"
    name = f"{stack.project.path.name}_front"
    stack.compose("rm", "--stop", "--force", "proxy")
    squatter = run_docker("run", "--detach", f"--network={name}", stack.image, "sleep", "60").strip()
    try:
        # The local image is used, because there may be no registry to pull from.
        stack.follow(manual["Update, roll back, scale"][5].replace("docker compose pull proxy\n", ""))
        stack.wait_until_ready()
        stack.request("GET", path)
    finally:
        run_docker("rm", "--force", squatter)

    assert address_in(stack, "proxy", "front") != before
    assert logged_client(stack, path) != address_in(stack, "proxy", "front")
