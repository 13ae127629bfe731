"""The pages through nginx."""

import re
from uuid import uuid4

import pytest

from tests.support.servers import BROWSER_HEADERS, EMAIL, PASSWORD, TODOS, Server
from tests.support.serving import Answer

pytestmark = pytest.mark.servers("sqlite")


def cookies_of(answer: Answer) -> dict[str, str]:
    """Return the header that sends back the cookies of a response."""
    cookies = answer.headers.get_all("Set-Cookie", [])
    return {"Cookie": "; ".join(cookie.partition(";")[0] for cookie in cookies)}


def test_person_signs_in_on_a_page_with_secure_cookies(server: Server) -> None:
    page = server.site.request("GET", "/sign-in", headers=BROWSER_HEADERS)
    (token,) = re.findall(r'name="csrf_token" value="([^"]+)"', page.body.decode())[-1:]
    form = {"csrf_token": token, "email": EMAIL, "password": PASSWORD}
    entered = server.site.request("POST", "/sign-in", form, form=True, headers=BROWSER_HEADERS | cookies_of(page))
    account = server.site.request("GET", "/account", headers=BROWSER_HEADERS | cookies_of(entered))

    assert (entered.status, entered.headers["Location"]) == (303, "/")
    for cookie in [*page.headers.get_all("Set-Cookie", []), *entered.headers.get_all("Set-Cookie", [])]:
        assert cookie.startswith("__Host-")
        assert {"HttpOnly", "Path=/", "SameSite=lax", "Secure"} <= set(cookie.split("; "))
    assert account.status == 200
    assert EMAIL in account.body.decode()
    assert server.site.request("POST", "/sign-in", form, form=True, headers=BROWSER_HEADERS).status == 403


def test_nginx_refuses_a_form_larger_than_any_page_needs(server: Server) -> None:
    refused = server.site.request("POST", "/todos", {"description": "x" * 170_000}, form=True)
    longest = server.site.request("POST", "/todos", {"description": "🎉" * 10_000}, form=True)
    by_api = server.site.request("POST", TODOS, {"description": "x" * 170_000})

    # Responses of nginx have no request id.
    assert (refused.status, refused.headers["X-Request-ID"]) == (413, None)
    assert longest.headers["X-Request-ID"]
    assert (by_api.status, bool(by_api.headers["X-Request-ID"])) == (401, True)


def test_nginx_serves_static_files_and_an_error_page_while_the_service_is_down(server: Server) -> None:
    page = server.site.request("GET", "/sign-in", headers=BROWSER_HEADERS)
    (style,) = re.findall(r'href="(/static/pages\.[0-9a-f]{16}\.css)"', page.body.decode())
    code = uuid4().hex
    server.machine.run(f"systemctl stop {server.slug}.target")
    try:
        file = server.site.request("GET", style)
        refused = server.site.request("GET", "/todos", headers=BROWSER_HEADERS)
        for name in ("reset-password", "verify-email"):
            server.site.request("GET", f"/{name}?token={code}", headers=BROWSER_HEADERS)
    finally:
        server.machine.run(f"systemctl start {server.slug}.target")
        server.site.wait()

    # nginx serves its own copy of the file, not a cached response of the service.
    assert (file.status, file.headers["X-Cache-Status"]) == (200, None)
    assert file.headers.get_all("Cache-Control") == ["public, max-age=31536000, immutable"]
    assert file.headers["Content-Type"].startswith("text/css")
    assert refused.status == 503
    assert refused.headers["Content-Type"].startswith("text/html")
    assert b"Temporarily unavailable" in refused.body
    # No log contains the codes that are sent by mail.
    server.machine.run("grep 'request: \"GET /todos' /var/log/nginx/error.log")
    server.machine.fails(f"grep --recursive --fixed-strings {code} /var/log/nginx")
