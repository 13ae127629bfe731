"""The pages through nginx."""

import re
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import httpx2
import pytest

from tests.support.browsers import Person, open_chromium
from tests.support.containers import (
    BROWSER_HEADERS,
    CONCURRENCY,
    DOMAIN,
    PAGE_ORIGIN,
    PASSWORD,
    RECOVERY_SECONDS,
    SECURITY_HEADERS,
    Stack,
    find_in_log,
)
from tests.support.serving import wait_until


def test_pages_and_their_files_come_through_the_proxy(sqlite: Stack) -> None:
    page = sqlite.request("GET", "/sign-in", headers=BROWSER_HEADERS)
    files = [sqlite.request("GET", find_style(page)) for _ in range(5)]

    assert page.status_code == 200
    assert {name: page.headers.get_list(name) for name in SECURITY_HEADERS} == {
        n: [v] for n, v in SECURITY_HEADERS.items()
    }
    (policy,) = page.headers.get_list("content-security-policy")
    assert "style-src 'self'" in policy
    assert page.headers["cache-control"] == "no-store"
    assert {file.headers["cache-control"] for file in files} == {"public, max-age=31536000, immutable"}
    assert {file.headers["content-type"] for file in files} == {"text/css; charset=utf-8"}
    assert {file.headers["content-encoding"] for file in files} == {"gzip"}
    assert "HIT" in {file.headers["x-cache-status"] for file in files}


def find_style(page: httpx2.Response) -> str:
    (style,) = re.findall(r'href="(/static/pages\.[0-9a-f]{16}\.css)"', page.text)
    return str(style)


def test_proxy_answers_browsers_and_clients_while_the_application_is_down(sqlite: Stack) -> None:
    style = find_style(sqlite.request("GET", "/", headers=BROWSER_HEADERS))
    sqlite.request("GET", style)
    sqlite.compose("stop", "app")
    try:
        asked = {**BROWSER_HEADERS, "Origin": PAGE_ORIGIN}
        page, answer = (sqlite.request("GET", path, headers=asked) for path in ("/todos", "/api/v1/todos"))
        file = sqlite.request("GET", style)
        codes = [uuid4().hex, uuid4().hex]
        for name, code in zip(("reset-password", "verify-email"), codes, strict=True):
            sqlite.request("GET", f"/{name}?token={code}", headers=BROWSER_HEADERS)
        find_in_log(sqlite, "proxy", 'request: "GET /todos')
        # /todos is logged twice: the second time under the name of nginx's error page.
        wait_until(
            lambda: len(find_in_log(sqlite, "proxy", '"status":503')) >= 4,
            RECOVERY_SECONDS,
            lambda: "four refusals are in the log",
        )
        logs = sqlite.compose("logs", "--no-log-prefix", "proxy")
    finally:
        sqlite.up()
        sqlite.wait_until_ready()

    assert page.status_code == 503
    assert page.headers["content-type"].startswith("text/html")
    assert "Temporarily unavailable" in page.text
    assert page.headers["retry-after"] == "1"
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert answer.headers["access-control-allow-origin"] == PAGE_ORIGIN
    assert file.status_code == 200
    # No log contains the codes that are sent by mail.
    assert not [code for code in codes if code in logs]


def test_sign_in_page_is_rate_limited_with_an_explanation(sqlite: Stack) -> None:
    def sign_in(_number: int) -> httpx2.Response:
        return sqlite.request("POST", "/sign-in", data={"email": "x"}, headers=BROWSER_HEADERS)

    with ThreadPoolExecutor(CONCURRENCY) as threads:
        answers = list(threads.map(sign_in, range(CONCURRENCY)))

    # Responses of nginx have no request id.
    refused = [answer for answer in answers if answer.status_code == 429 and "x-request-id" not in answer.headers]
    assert len(refused) >= 10
    assert refused[0].headers["content-type"].startswith("text/html")
    assert "Too many requests" in refused[0].text


@pytest.mark.browser
def test_person_signs_in_through_the_proxy_with_secure_cookies(sqlite: Stack) -> None:
    email = sqlite.create_account()

    with open_chromium(f"--host-resolver-rules=MAP {DOMAIN} 127.0.0.1") as chromium:
        context = chromium.new_context(ignore_https_errors=True)
        person = Person(context, f"https://{DOMAIN}:{sqlite.https_port}")
        person.open("/sign-in")
        person.fill("E-mail address", email)
        person.fill("Password", PASSWORD)
        person.press("Sign in")
        person.sees(f"Hello, {email}.")
        cookies = {cookie["name"]: cookie for cookie in context.cookies()}

    assert {"__Host-session", "__Host-anonymous_id"} <= set(cookies)
    assert {(c["secure"], c["httpOnly"], c["sameSite"]) for c in cookies.values()} == {(True, True, "Lax")}
    assert person.complaints == []
