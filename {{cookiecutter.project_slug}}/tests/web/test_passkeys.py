"""Pages of passkeys. Their script needs a real browser; here, Python does its work."""

import html
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI

from tests.support.accounts import PASSWORD
from tests.support.browsing import ORIGIN, Browser, open_browser
from tests.support.passkeys import SIGN_IN, Authenticator

EMAIL = "ada@example.com"
PASSKEYS = "/account/passkeys"
SCRIPTED = "script-src 'self'; connect-src 'self'"


@pytest.fixture
async def browser(app: FastAPI) -> AsyncIterator[Browser]:
    async with open_browser(app) as browser:
        await browser.enter(EMAIL)
        yield browser


async def begin(browser: Browser, **proof: str) -> dict[str, Any]:
    await browser.open(PASSKEYS)
    await browser.send(f"{PASSKEYS}/begin", current_password=PASSWORD, **proof)
    (options,) = re.findall('data-options="([^"]*)"', browser.text)
    made: dict[str, Any] = json.loads(html.unescape(options))
    return made


async def add(browser: Browser, key: Authenticator, name: str = "Phone", **proof: str) -> list[str]:
    """Add a passkey, and return the recovery codes."""
    options = await begin(browser, **proof)
    await browser.send(PASSKEYS, name=name, credential=json.dumps(key.create(options)))
    return re.findall("<code>([A-Z2-7-]+)</code>", browser.text)


async def use(browser: Browser, key: Authenticator, form: str = "/sign-in/passkey") -> str:
    """Do the work of passkeys.js: request options for the form, and return the passkey's response."""
    fields = {"csrf_token": browser.find_form(form)["csrf_token"]}
    headers = {"Origin": ORIGIN, "Sec-Fetch-Site": "same-origin", "Accept": "*/*"}
    asked = await browser.client.post("/sign-in/passkey/options", data=fields, headers=headers)
    assert asked.status_code == 200, asked.text
    return json.dumps(key.get(asked.json()))


async def test_user_adds_a_passkey_and_signs_in_with_it(app: FastAPI, browser: Browser) -> None:
    key = Authenticator()

    codes = await add(browser, key)

    assert len(codes) == 10
    async with open_browser(app) as other:
        await other.open("/sign-in")
        await other.send("/sign-in/passkey", credential=await use(other, key), next="/account")
        assert other.path == "/account", other.text
        await other.open(PASSKEYS)
        assert "Phone" in other.text
        assert "last used" in other.text


async def test_password_alone_leads_to_the_second_factor(app: FastAPI, browser: Browser) -> None:
    key = Authenticator()
    codes = await add(browser, key)

    async with open_browser(app) as other:
        await other.open("/sign-in")
        await other.send("/sign-in", email=EMAIL, password=PASSWORD)
        assert "second factor" in other.text
        await other.send("/sign-in", email=EMAIL, password=PASSWORD, otp=codes[0])
        assert other.path == "/"


async def test_passkey_replaces_a_code_on_account_pages(browser: Browser) -> None:
    key, spare = Authenticator(), Authenticator()
    await add(browser, key)

    await browser.open(PASSKEYS)
    await browser.send(f"{PASSKEYS}/begin", current_password=PASSWORD)
    refused = browser.text
    proof = await use(browser, key, f"{PASSKEYS}/begin")
    assert await add(browser, spare, "Spare key", passkey=proof) == []
    assert "The passkey was added." in browser.text
    (first, second) = browser.list_ids(PASSKEYS + "/{}/remove")
    await browser.open(f"{PASSKEYS}/{first}/remove")
    proof = await use(browser, spare, f"{PASSKEYS}/{first}/remove")
    await browser.send(f"{PASSKEYS}/{first}/remove", current_password=PASSWORD, passkey=proof)

    assert "enter a code" in refused
    assert "The passkey was removed." in browser.text
    assert browser.list_ids(PASSKEYS + "/{}/remove") == [second]


async def test_refused_removal_shows_the_form_again(browser: Browser) -> None:
    await add(browser, Authenticator())
    await browser.open(PASSKEYS)
    (passkey_id,) = browser.list_ids(PASSKEYS + "/{}/remove")

    await browser.open(f"{PASSKEYS}/{passkey_id}/remove")
    await browser.send(f"{PASSKEYS}/{passkey_id}/remove", current_password="wrong password")

    assert browser.page.status_code == 422
    assert "Incorrect current password." in browser.text


async def test_refused_passkey_returns_to_the_first_page(browser: Browser) -> None:
    options = await begin(browser)
    foreign = Authenticator(origin="https://evil.example").create(options)

    await browser.send(PASSKEYS, name="Phone", credential=json.dumps(foreign))

    assert browser.page.status_code == 422
    assert "Invalid passkey signature." in browser.text
    assert browser.find_form(f"{PASSKEYS}/begin")


@pytest.mark.parametrize("credential", ["", "{", "[]", '{"id": "AA"}', "[" * 3000])
async def test_malformed_passkey_is_refused(app: FastAPI, browser: Browser, credential: str) -> None:
    await begin(browser)
    await browser.send(PASSKEYS, name="Phone", credential=credential)
    added = browser.page.status_code
    async with open_browser(app) as other:
        await other.open("/sign-in")
        await other.send("/sign-in/passkey", credential=credential)

        assert (added, other.page.status_code) == (422, 422)
        assert other.find_form("/sign-in")


async def test_challenge_is_bound_to_its_browser(app: FastAPI, browser: Browser) -> None:
    key = Authenticator()
    await add(browser, key)

    async with open_browser(app) as first, open_browser(app) as second:
        for other in (first, second):
            await other.open("/sign-in")
        answer = await use(first, key)
        await second.send("/sign-in/passkey", credential=answer)
        by_api = await first.client.post(SIGN_IN, json={"credential": json.loads(await use(first, key))})
        options = (await first.client.post(f"{SIGN_IN}/options")).json()
        await first.send("/sign-in/passkey", credential=json.dumps(key.get(options)))

        assert [second.page.status_code, by_api.status_code, first.page.status_code] == [422] * 3
        assert "challenge" in second.text


async def test_other_sites_cannot_request_passkey_options(app: FastAPI) -> None:
    async with open_browser(app) as browser:
        await browser.open("/sign-in")
        fields = {"csrf_token": browser.find_form("/sign-in/passkey")["csrf_token"]}
        foreign = await browser.client.post(
            "/sign-in/passkey/options", data=fields, headers={"Sec-Fetch-Site": "cross-site"}
        )
        without = await browser.client.post("/sign-in/passkey/options", data={"csrf_token": "x"})

    assert (foreign.status_code, without.status_code) == (403, 403)


async def test_scripts_are_allowed_only_on_pages_with_a_passkey_button(browser: Browser) -> None:
    policies = {}
    for path in ("/", "/sign-up", "/verify-email", "/forgot-password", "/account", PASSKEYS):
        policies[path] = (await browser.open(path)).headers["content-security-policy"]
    await browser.send("/sign-out")
    policies["/sign-in"] = (await browser.open("/sign-in")).headers["content-security-policy"]

    assert {path for path, policy in policies.items() if policy.endswith(SCRIPTED)} == {
        "/account",
        PASSKEYS,
        "/sign-in",
    }
    assert [path for path, policy in policies.items() if "unsafe" in policy] == []
    assert not re.search(r"<script(?! src=)|\son[a-z]+=", browser.text)


async def test_passkey_of_another_user_is_not_found(app: FastAPI, browser: Browser) -> None:
    await add(browser, Authenticator())
    await browser.open(PASSKEYS)
    (passkey_id,) = browser.list_ids(PASSKEYS + "/{}/remove")

    async with open_browser(app) as other:
        await other.enter("eve@example.com")
        shown = await other.open(f"{PASSKEYS}/{passkey_id}/remove")
        assert shown.status_code == 404
        await other.open(PASSKEYS)
        assert passkey_id not in other.text
