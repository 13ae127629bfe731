"""All pages: their headers, escaped input, and the page for an address that does not exist."""

import re

import pytest

from app.core.config.settings import Settings
from app.core.db.session import Database
from app.core.feature import Feature
from app.features import FEATURES
from tests.support.accounts import PASSWORD
from tests.support.applications import create_app
from tests.support.browsing import EMAIL, Browser, open_browser

POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


async def test_user_input_is_escaped(browser: Browser) -> None:
    await browser.open("/sign-up")
    await browser.send("/sign-up", email=EMAIL, password=PASSWORD, name="<script>alert(1)</script>")
    await browser.sign_in(EMAIL)

    assert "<script" not in browser.text
    assert "&lt;script&gt;" in browser.text


@pytest.mark.parametrize("path", ["/", "/forgot-password", "/sign-up"])
async def test_content_security_policy_forbids_other_sources_and_inline_code(browser: Browser, path: str) -> None:
    await browser.open(path)

    assert browser.page.headers["content-security-policy"] == POLICY
    assert not re.search(r"<script|<style|\sstyle=|\son[a-z]+=", browser.text)
    assert browser.page.headers["cache-control"] == "no-store"


async def test_features_add_sources_to_the_content_security_policy(settings: Settings, database: Database) -> None:
    images = Feature(content_security_policy={"img-src": ("https://images.example.com",)})
    scripts = Feature(
        content_security_policy={"img-src": ("data:",), "script-src": ("'self'",), "base-uri": ("'self'",)}
    )
    async with open_browser(create_app(settings, database, features=(*FEATURES, images, scripts))) as browser:
        policies = [(await browser.open(path)).headers["content-security-policy"] for path in ("/", "/nothing")]

    changed = POLICY.replace("img-src 'self'", "img-src 'self' https://images.example.com data:")
    assert policies == [changed.replace("base-uri 'none'", "base-uri 'self'") + "; script-src 'self'"] * 2


async def test_not_found_is_a_page_for_browsers_and_a_problem_document_for_programs(browser: Browser) -> None:
    page = await browser.open("/nothing")
    api = await browser.open("/api/v1/nothing")
    program = await browser.client.get("/nothing", headers={"Accept": "*/*"})

    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["x-request-id"] in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for answer in (api, program):
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
