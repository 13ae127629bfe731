"""The pages of a baked project in a real browser. Every test fails if the browser reports an error or a warning."""

import email
import email.policy
import re
import signal
import time
from base64 import b32decode
from collections.abc import Callable, Iterator
from hashlib import sha1
from hmac import digest
from typing import Any, TypeAlias
from uuid import uuid4

import pytest
from playwright.sync_api import Browser

from tests.support.browsers import PATIENCE_MILLISECONDS, Person, open_chromium
from tests.support.projects import Bake, BakedProject
from tests.support.serving import RunningServer, serve, wait_until

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PASSWORD = "correct horse battery staple"
NEW_PASSWORD = "another horse, another staple"
LONG = "Donaudampfschifffahrtselektrizitaetenhauptbetriebswerkbauunterbeamtengesellschaft"
PHONE = {"width": 320, "height": 640}
MAIL_SECONDS = 60
PUBLIC_URL = "http://localhost:8000"

OpenPage: TypeAlias = Callable[..., Person]


@pytest.fixture(scope="module")
def project(bake: Bake) -> BakedProject:
    return bake(project_name="Pet Shop", database="sqlite", web_pages="yes")


@pytest.fixture(scope="module")
def server(project: BakedProject) -> Iterator[RunningServer]:
    with serve(["make", "run"], project.path) as server:
        yield server
        server.stop(signal.SIGINT, group=True)


@pytest.fixture(scope="module")
def chromium(server: RunningServer) -> Iterator[Browser]:
    # Passkeys are bound to the host of PUBLIC_URL.
    own = server.base_url.removeprefix("http://")
    with open_chromium(f"--host-resolver-rules=MAP localhost:8000 {own}") as chromium:
        yield chromium


@pytest.fixture
def open_page(chromium: Browser, server: RunningServer) -> Iterator[OpenPage]:
    people: list[Person] = []

    def open_one(base_url: str = server.base_url, **options: Any) -> Person:  # noqa: ANN401  # passed on to new_context, which declares them
        people.append(Person(chromium.new_context(**options), base_url))
        return people[-1]

    yield open_one
    for person in people:
        person.context.close()
    assert [complaint for person in people for complaint in person.complaints] == []


def sign_up(person: Person) -> str:
    address = f"{uuid4().hex}@example.com"
    person.open("/sign-up")
    person.fill("Name", "Ada")
    person.fill("E-mail address", address)
    person.fill("Password", PASSWORD)
    person.press("Sign up")
    person.sees("Account created. You can now sign in.")
    return address


def sign_in(person: Person, address: str, password: str = PASSWORD) -> None:
    person.open("/sign-in")
    person.fill("E-mail address", address)
    person.fill("Password", password)
    person.press("Sign in")
    person.sees("Hello")


def enter(person: Person) -> str:
    address = sign_up(person)
    sign_in(person, address)
    return address


def add_todo(person: Person, title: str) -> None:
    person.open("/todos")
    person.fill("New todo", title)
    person.press("Add")
    person.sees(title)


def show_code(secret: str) -> str:
    """Return the code that an authenticator app shows (RFC 6238)."""
    mac = digest(b32decode(secret), int(time.time() // 30).to_bytes(8), sha1)
    start = mac[-1] & 15
    return f"{int.from_bytes(mac[start : start + 4]) & 0x7FFFFFFF:010}"[-6:]


@pytest.mark.parametrize("javascript", [True, False], ids=["with JavaScript", "without JavaScript"])
def test_user_signs_up_edits_todos_and_signs_out(open_page: OpenPage, javascript: bool) -> None:
    person = open_page(java_script_enabled=javascript)
    enter(person)

    person.page.get_by_role("link", name="Todos").first.click()
    person.sees("You have no todos.")
    add_todo(person, "Order the cake")
    add_todo(person, "Write to Charles")
    person.press("Mark as done", within="Order the cake")
    person.sees("Order the cake (done)")
    person.page.locator("li", has_text="Charles").get_by_role("link", name="Edit").click()
    person.fill("Title", "Call Charles")
    person.press("Save")
    person.sees("Call Charles")
    person.press("Delete", within="Order the cake")
    person.does_not_see("Order the cake")

    person.page.get_by_role("button", name="Sign out").click()
    person.sees("You are signed out.")
    person.open("/todos")
    assert person.path == "/sign-in?next=/todos"


def test_pages_work_with_the_keyboard_alone(open_page: OpenPage) -> None:
    person = open_page()
    keyboard = person.page.keyboard
    address = f"{uuid4().hex}@example.com"
    person.open("/")
    keyboard.press("Tab")
    person.follow()
    assert person.path == "/#main"

    person.tab_to("Sign up")
    person.follow()
    person.sees("Already have an account?")
    for label, text in (("E-mail address", address), ("Password", PASSWORD)):
        person.tab_to(label)
        keyboard.type(text)
    person.follow()
    person.sees("Account created")
    for label, text in (("E-mail address", address), ("Password", PASSWORD)):
        person.tab_to(label)
        keyboard.type(text)
    person.follow()
    person.sees("Hello")
    person.tab_to("Todos")
    person.follow()
    person.tab_to("New todo")
    keyboard.type("Order the cake")
    person.follow()
    person.sees("Todo added.")
    person.tab_to("Mark as done")
    person.follow("Space")
    person.sees("Order the cake (done)")
    person.tab_to("Edit")
    person.follow()
    person.tab_to("Description")
    keyboard.type("With candles")
    person.tab_to("Save")
    person.follow()
    person.sees("Todo saved.")
    person.tab_to("Delete")
    person.follow()
    person.sees("You have no todos.")
    person.tab_to("Sign out")
    person.follow()
    person.sees("You are signed out.")


# Another port of this machine is the same site, so the browser sends the cookies.
@pytest.mark.parametrize(
    ("origin", "sends_cookies"), [("http://evil.example", False), ("http://127.0.0.1:18080", True)], ids=["far", "near"]
)
def test_form_of_another_site_changes_nothing(open_page: OpenPage, origin: str, sends_cookies: bool) -> None:
    person = open_page()
    enter(person)
    fields = '<input name="title" value="Pwned"><button>Win</button>'
    page = f'<main><form method="post" action="{person.base_url}/todos">{fields}</form></main>'
    person.context.route(f"{origin}/", lambda route: route.fulfill(body=page, content_type="text/html"))
    person.page.goto(f"{origin}/")

    with person.page.expect_request(f"{person.base_url}/todos") as request:
        person.press("Win")

    person.sees("The form was sent from another site. Use the form of this site.")
    assert ("session=" in request.value.all_headers().get("cookie", "")) == sends_cookies
    person.open("/todos")
    person.sees("You have no todos.")


def test_form_without_a_token_changes_nothing(open_page: OpenPage) -> None:
    person = open_page()
    enter(person)
    person.open("/todos")
    person.page.evaluate("document.querySelectorAll('[name=csrf_token]').forEach(field => field.remove())")

    person.fill("New todo", "Pwned")
    person.press("Add")

    person.sees("The form has expired")
    person.open("/todos")
    person.sees("You have no todos.")


def test_cookies_are_hidden_from_scripts_and_other_sites(open_page: OpenPage) -> None:
    person = open_page()
    enter(person)

    cookies = {cookie["name"]: cookie for cookie in person.context.cookies()}
    assert {"session", "anonymous_id"} <= set(cookies)
    for cookie in cookies.values():
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Lax"
    assert person.page.evaluate("document.cookie") == ""


def test_content_of_other_origins_is_neither_run_nor_loaded(open_page: OpenPage) -> None:
    person = open_page()
    person.open("/")

    person.page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.text = 'document.title = "Pwned"';
            const image = new Image();
            image.src = 'https://evil.example/image.png';
            document.body.append(script, image);
            document.body.setAttribute('onclick', 'document.title = "Pwned"');
            document.body.click();
        }"""
    )
    wait_until(
        lambda: person.page.evaluate("1") == 1 and len(person.complaints) >= 3,
        PATIENCE_MILLISECONDS / 1000,
        lambda: f"three complaints: {person.complaints}",
    )

    assert person.page.title() == "Pet Shop"
    assert all("Content Security Policy" in complaint for complaint in person.complaints)
    person.complaints.clear()


def test_forgotten_password_is_reset_with_the_link_in_an_email(open_page: OpenPage, project: BakedProject) -> None:
    person = open_page()
    address = sign_up(person)
    person.open("/forgot-password")
    person.fill("E-mail address", address)
    person.press("Send message")
    person.sees("Check your e-mail for instructions")

    wait_until(lambda: find_link(project, address) is not None, MAIL_SECONDS, lambda: "the message is there")
    person.open(find_link(project, address) or "")
    person.fill("New password", NEW_PASSWORD)
    person.press("Set a new password")

    person.sees("Your password was changed.")
    sign_in(person, address, NEW_PASSWORD)


def find_link(project: BakedProject, address: str) -> str | None:
    """Return the path of the link in the e-mail to this address; without a mail server, e-mails are files."""
    for file in (project.path / "mail").glob("*.eml"):
        message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
        body = message.get_body(("plain",))
        text = body.get_content() if body else ""
        if message["To"] == address and (link := re.search(r"(?m)^http://localhost:8000(/reset\S+)\s*$", text)):
            return link[1]
    return None


class SecurityKey:
    """Chromium's virtual authenticator, attached to one page. It confirms every request by itself."""

    def __init__(self, person: Person) -> None:
        self._session = person.context.new_cdp_session(person.page)
        self._session.send("WebAuthn.enable")
        options = {"protocol": "ctap2", "transport": "usb", "automaticPresenceSimulation": True}
        options |= {"hasResidentKey": True, "hasUserVerification": True, "isUserVerified": True}
        self._id = self._session.send("WebAuthn.addVirtualAuthenticator", {"options": options})["authenticatorId"]

    def read(self) -> dict[str, Any]:
        """Return the only passkey of the authenticator."""
        (credential,) = self._session.send("WebAuthn.getCredentials", {"authenticatorId": self._id})["credentials"]
        return dict(credential)

    def write(self, credential: dict[str, Any]) -> None:
        """Replace the passkey of the authenticator."""
        self._session.send("WebAuthn.clearCredentials", {"authenticatorId": self._id})
        self._session.send("WebAuthn.addCredential", {"authenticatorId": self._id, "credential": credential})

    def unplug(self) -> None:
        self._session.send("WebAuthn.removeVirtualAuthenticator", {"authenticatorId": self._id})


def add_passkey(person: Person, name: str, otp: str = "") -> None:
    person.open("/account/passkeys")
    person.fill("Current password", PASSWORD)
    person.fill("Code, if your account has a second factor", otp)
    person.press("Add a passkey")
    person.fill("Passkey name", name)
    person.press("Create passkey")


def list_codes(person: Person) -> list[str]:
    person.sees("Recovery codes")
    return person.page.locator("main code").all_inner_texts()


def sign_out(person: Person) -> None:
    person.page.get_by_role("button", name="Sign out").click()
    person.sees("You are signed out.")


def press_passkey(person: Person) -> None:
    person.open("/sign-in")
    person.press("Sign in with a passkey")


def test_user_with_a_passkey_cannot_sign_in_with_the_password_alone(open_page: OpenPage) -> None:
    person = open_page(PUBLIC_URL)
    address = enter(person)
    SecurityKey(person)
    add_passkey(person, "Blue key")
    list_codes(person)
    sign_out(person)

    press_passkey(person)
    person.sees("Hello")
    person.open("/account/passkeys")
    person.sees("last used")
    sign_out(person)
    person.open("/sign-in")
    person.fill("E-mail address", address)
    person.fill("Password", PASSWORD)
    person.press("Sign in")
    person.sees("Your account has a second factor")
    person.press("Sign in with a passkey")
    person.sees("Hello")


def test_second_passkey_replaces_a_lost_one(open_page: OpenPage) -> None:
    person = open_page(PUBLIC_URL)
    enter(person)
    first = SecurityKey(person)
    add_passkey(person, "Blue key")
    lost, codes = first.read(), list_codes(person)
    first.unplug()
    SecurityKey(person)
    add_passkey(person, "Red key", codes[0])
    person.sees("The passkey was added.")

    person.page.locator("li", has_text="Blue key").get_by_role("link", name="Remove").click()
    person.fill("Current password", PASSWORD)
    person.press("Use a passkey instead of a code")
    person.sees("The passkey was removed.")
    person.does_not_see("Blue key")
    sign_out(person)

    press_passkey(person)
    person.sees("Hello")
    sign_out(person)
    finder = open_page(PUBLIC_URL)
    SecurityKey(finder).write(lost)
    press_passkey(finder)
    finder.sees("No account has this passkey. Use another passkey, or another way to sign in.")


def test_recovery_code_replaces_a_lost_passkey(open_page: OpenPage) -> None:
    person = open_page(PUBLIC_URL)
    address = enter(person)
    key = SecurityKey(person)
    add_passkey(person, "Blue key")
    codes = list_codes(person)
    key.unplug()
    sign_out(person)

    person.open("/sign-in")
    for code in ("", codes[0]):
        person.fill("E-mail address", address)
        person.fill("Password", PASSWORD)
        if code:
            person.fill("Code", code)
        person.press("Sign in")
        person.sees("Hello" if code else "Your account has a second factor")


def test_copied_passkey_is_refused(open_page: OpenPage) -> None:
    person, thief = open_page(PUBLIC_URL), open_page(PUBLIC_URL)
    enter(person)
    key = SecurityKey(person)
    add_passkey(person, "Blue key")
    list_codes(person)
    copy = key.read()
    sign_out(person)
    press_passkey(person)
    person.sees("Hello")

    SecurityKey(thief).write(copy)
    press_passkey(thief)

    thief.sees("The passkey may have been copied")
    thief.open("/account")
    assert thief.path == "/sign-in?next=/account"


# Chromium refuses to sign for another site. The tests of the service cover an authenticator that signs anyway.
def test_passkey_is_not_used_for_another_site(open_page: OpenPage) -> None:
    person = open_page(PUBLIC_URL)
    enter(person)
    SecurityKey(person)
    add_passkey(person, "Blue key")
    list_codes(person)
    evil = "http://evil.localhost:8000"
    person.context.route(f"{evil}/", lambda route: route.fulfill(body="<main></main>", content_type="text/html"))
    person.page.goto(f"{evil}/")

    outcome = person.page.evaluate(
        """async (rpId) => {
            const publicKey = { challenge: new Uint8Array(32), rpId };
            try { return (await navigator.credentials.get({ publicKey })).id; } catch (error) { return error.name; }
        }""",
        "localhost",
    )

    assert outcome == "SecurityError"


def test_failed_passkey_shows_an_error_and_can_be_tried_again(open_page: OpenPage) -> None:
    person = open_page(PUBLIC_URL)
    enter(person)
    SecurityKey(person).unplug()
    sign_out(person)
    person.open("/sign-in")
    person.page.evaluate("() => { navigator.credentials.get = () => Promise.reject(new Error('cancelled')); }")

    person.press("Sign in with a passkey")

    person.sees("The passkey did not work")
    person.press("Sign in with a passkey")
    person.sees("The passkey did not work")


def test_passkey_button_is_hidden_without_javascript(open_page: OpenPage) -> None:
    person = open_page(java_script_enabled=False)
    person.open("/sign-in")

    assert person.page.get_by_role("button").all_inner_texts() == ["Sign in"]


def walk_outside(person: Person) -> Iterator[str]:
    """Open each page that needs no sign-in, in each of its states; yield the name of the state."""
    for path in ("/", "/sign-up", "/forgot-password", "/reset-password", "/verify-email", "/nothing"):
        person.open(path)
        yield path
    person.open("/sign-up")
    person.fill("E-mail address", "ada@example.com")
    person.fill("Password", "short")
    person.press("Sign up")
    person.sees("must have 12")
    yield "a sign-up that is refused"
    person.open("/account")
    yield "a sign-in that is asked for"
    person.fill("E-mail address", f"{uuid4().hex}@example.com")
    person.fill("Password", "wrong password")
    person.press("Sign in")
    person.sees("Incorrect e-mail address or password")
    yield "a sign-in that is refused"


def walk_inside(person: Person) -> Iterator[str]:
    enter(person)
    yield "home"
    for path in ("/todos", "/account", "/account/password", "/account/email", "/account/sessions", "/account/delete"):
        person.open(path)
        yield path
    person.open("/account/passkeys")
    yield "no passkeys"
    person.fill("Current password", PASSWORD)
    person.press("Add a passkey")
    person.sees("Create passkey")
    yield "a passkey to create"
    for title in ("Order the cake", f"Write to the {LONG}"):
        add_todo(person, title)
    person.press("Mark as done", within="cake")
    person.sees("Order the cake (done)")
    yield "todos"
    person.page.get_by_role("link", name="Edit").first.click()
    person.fill("Title", " ")
    person.press("Save")
    person.sees("Please correct the fields below.")
    yield "a todo that is refused"


def walk_second_factor(person: Person) -> Iterator[str]:
    person.open("/account/second-factor")
    yield "no second factor"
    person.fill("Current password", PASSWORD)
    person.press("Set up")
    person.sees("Enter this secret")
    yield "a second factor to confirm"
    person.fill("Code", show_code(person.page.locator("main code").inner_text()))
    person.press("Turn on")
    person.sees("Recovery codes")
    yield "recovery codes"
    person.open("/account/second-factor")
    yield "a second factor"


def walk(person: Person) -> Iterator[str]:
    yield from walk_outside(person)
    yield from walk_inside(person)
    yield from walk_second_factor(person)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_barrier_on_any_page(open_page: OpenPage, scheme: str) -> None:
    person = open_page(color_scheme=scheme)

    barriers = [barrier for _ in walk(person) for barrier in person.find_barriers()]

    assert barriers == []


def test_axe_finds_a_barrier_where_there_is_one(open_page: OpenPage) -> None:
    person = open_page()
    person.open("/sign-in")
    person.page.evaluate("document.querySelector('label').remove()")

    assert any("label" in barrier for barrier in person.find_barriers())


def test_pages_fit_a_phone(open_page: OpenPage) -> None:
    person = open_page(viewport=PHONE, is_mobile=True, has_touch=True)

    too_wide = {stop: pixels for stop in walk(person) if (pixels := person.width_that_is_cut_off()) > 0}

    assert too_wide == {}


def test_pages_follow_the_colour_scheme_of_the_system(open_page: OpenPage) -> None:
    grounds = []
    for scheme in ("light", "dark"):
        person = open_page(color_scheme=scheme)
        person.open("/")
        grounds.append(person.page.evaluate("getComputedStyle(document.querySelector('main')).backgroundColor"))

    light, dark = (sum(map(int, re.findall(r"\d+", ground)[:3])) for ground in grounds)
    assert light > 600 > 120 > dark
