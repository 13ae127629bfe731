"""Requests and answers through nginx."""

import json
from contextlib import closing
from http.client import HTTPConnection
from uuid import uuid4

import pytest

from tests.support.servers import DOMAIN, EMAIL, PROJECT, TODOS, TOKEN, Server, create
from tests.support.serving import wait_until


def test_person_signs_in_and_keeps_todos_over_https(server: Server, token: str) -> None:
    created = create(server, token, "Deploy it")
    todo = f"{TODOS}/{created.json['id']}"
    changed = server.site.request("PATCH", todo, {"title": "Trust it"}, token=token)
    titles = server.titles(token)
    deleted = server.site.request("DELETE", todo, token=token)

    assert (created.status, changed.status, deleted.status) == (201, 200, 204)
    assert "Trust it" in titles
    assert "Trust it" not in server.titles(token)


def test_plain_http_redirects_to_https_and_internal_routes_are_hidden(server: Server) -> None:
    code = uuid4().hex
    path = f"/reset-password?token={code}"
    assert server.site.redirect_of(path) == (308, f"https://{DOMAIN}{path}")
    server.machine.run('grep \'"path":"/reset-password"\' /var/log/nginx/access.log')
    server.machine.fails(f"grep --recursive --fixed-strings {code} /var/log/nginx")
    assert [server.site.request("GET", path).status for path in ("/metrics", "/health/ready", "/docs")] == [404] * 3
    assert server.site.request("GET", "/static/favicon.svg").status == 200


@pytest.mark.servers("postgresql", "debian13")
def test_control_characters_in_a_path_are_refused(server: Server) -> None:
    paths = [f"{path}%{code}" for path in ("/metrics", "/health/ready", TOKEN) for code in ("0a", "0d", "01", "7f")]

    answers = [server.site.request("GET", path) for path in paths]

    assert [answer.status for answer in answers] == [400] * len(paths)
    assert server.site.request("GET", "/metrics.json").status == 404


@pytest.mark.servers("postgresql", "debian13")
def test_nginx_refuses_a_form_larger_than_any_route_needs(server: Server) -> None:
    for path in (TOKEN, "/api/v1/auth/revoke"):
        refused = server.site.request("POST", path, {"password": "x" * 20_000}, form=True)
        answered = server.site.request("POST", path, {"password": "x" * 15_000}, form=True)

        # Responses of nginx have no request id.
        assert (refused.status, refused.headers["X-Request-ID"]) == (413, None)
        assert answered.headers["X-Request-ID"]


@pytest.mark.servers("postgresql", "debian13")
def test_longest_passwords_reach_the_service(server: Server) -> None:
    longest = "\N{PARTY POPPER}" * 1024
    change = {"current_password": longest, "new_password": longest}

    changed = server.site.request("POST", "/api/v1/users/me/password", change)
    signed_in = server.site.request("POST", TOKEN, {"username": EMAIL, "password": longest}, form=True)

    # Responses of nginx have no request id.
    assert changed.headers["X-Request-ID"]
    assert signed_in.headers["X-Request-ID"]


@pytest.mark.servers("postgresql", "debian13")
def test_plain_http_refuses_credentials_and_api_calls(server: Server) -> None:
    def ask(method: str, path: str, **headers: str) -> tuple[int, str | None, bytes]:
        with closing(HTTPConnection(server.site.address, 80, timeout=20)) as connection:
            connection.request(method, path, headers={"Host": DOMAIN, **headers})
            response = connection.getresponse()
            return response.status, response.getheader("Content-Type"), response.read()

    refused = [
        ask("POST", TOKEN),
        ask("GET", f"{TODOS}?limit=1"),
        ask("GET", "/x/..%2fapi/v1/todos"),
        ask("POST", "/sign-in"),
        ask("GET", "/", Authorization="Bearer secret"),
    ]

    assert {(status, media_type) for status, media_type, _ in refused} == {(403, "application/problem+json")}
    assert all("Use HTTPS." in json.loads(body)["detail"] for *_, body in refused)
    assert server.site.redirect_of("/sign-in?next=%2F") == (308, f"https://{DOMAIN}/sign-in?next=%2F")


@pytest.mark.servers("postgresql", "debian13")
def test_hsts_includes_subdomains_when_the_operator_configures_it(server: Server) -> None:
    setting = "/etc/nginx/service/hsts.conf"
    seen = [server.site.request("GET", "/health").headers["Strict-Transport-Security"]]

    def is_changed() -> bool:
        seen.append(server.site.request("GET", "/health").headers["Strict-Transport-Security"])
        return seen[-1] != seen[0]

    server.machine.run(f"sed -i '/default/s/\";$/; includeSubDomains\";/' {setting}; systemctl reload nginx")
    try:
        wait_until(is_changed, 60, lambda: "nginx has reloaded")
    finally:
        server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")

    assert (seen[0], seen[-1]) == ("max-age=31536000", "max-age=31536000; includeSubDomains")


@pytest.mark.servers("postgresql")
def test_address_that_the_operator_denies_is_refused(server: Server) -> None:
    server.site.request("GET", "/health")
    ours = json.loads(server.machine.run("tail -n 1 /var/log/nginx/access.log"))["client"]
    denied = "/etc/nginx/service/deny.conf"

    server.machine.run(f"cp {denied} /root/deny.conf; echo 'deny {ours};' >> {denied}; systemctl reload nginx")
    try:
        wait_until(lambda: server.site.request("GET", "/health").status == 403, 60, lambda: "we are refused")
        provisioned = server.machine.run(f"{PROJECT}/deploy/vm/provision.sh")
    finally:
        server.machine.run(f"cp /root/deny.conf {denied}; systemctl reload nginx")
        # Old nginx workers may still accept a connection.
        wait_until(lambda: all(server.site.answers() for _ in range(10)), 60, lambda: "we are let in again")

    assert "Nothing changed" in provisioned


@pytest.mark.servers("postgresql")
def test_forged_client_address_appears_in_no_log(server: Server) -> None:
    forged = {"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6", "Forwarded": "for=6.6.6.6"}
    form = {"grant_type": "password", "username": "nobody@example.com", "password": "wrong password 123"}

    server.site.request("POST", TOKEN, form, form=True, headers=forged)

    lines = server.machine.run(f"journalctl -u '{server.slug}@*' -o cat | grep 'sign-in failed' | tail -n 1")
    ours = server.machine.run("tail -n 1 /var/log/nginx/access.log")
    assert json.loads(lines)["client"] == json.loads(ours)["client"] != "6.6.6.6"
    server.machine.fails("grep --recursive --fixed-strings 6.6.6.6 /var/log/nginx")
