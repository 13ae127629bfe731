"""Take the pictures in the README: `make screenshots`, after the pages have changed."""

import tempfile
from contextlib import suppress
from pathlib import Path

from playwright.sync_api import Error, ViewportSize

from tests.support.browsers import Person, open_chromium
from tests.support.projects import run_cookiecutter
from tests.support.serving import serve
from tests.support.template import ROOT

FOLDER = ROOT / "docs" / "screenshots"
DESKTOP = ViewportSize(width=800, height=600)
PHONE = ViewportSize(width=360, height=600)
PASSWORD = "correct horse battery staple"
TRIES = 20


def fill_in(person: Person) -> None:
    """Sign up, sign in, and add todos."""
    person.open("/sign-up")
    for label, text in (("Name", "Ada"), ("E-mail address", "ada@example.com"), ("Password", PASSWORD)):
        person.fill(label, text)
    person.press("Sign up")
    person.fill("E-mail address", "ada@example.com")
    person.fill("Password", PASSWORD)
    person.press("Sign in")
    person.open("/todos")
    for title in ("Call Charles about the engine", "Order the cake", "Write the invitations"):
        person.fill("New todo", title)
        person.press("Add")
    person.press("Mark as done", within="cake")


def take(person: Person, name: str) -> None:
    """Take a picture; retry, because Chromium may fail to capture the screen on a busy machine."""
    for _ in range(TRIES):
        with suppress(Error):
            person.page.screenshot(path=FOLDER / f"{name}.png", scale="css")
            return
    raise SystemExit(f"There is no picture of {name}.")


def take_all(base_url: str) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open_chromium() as chromium:
        person = Person(chromium.new_context(viewport=DESKTOP, color_scheme="light"), base_url)
        person.open("/sign-up")
        person.fill("E-mail address", "ada@example.com")
        person.fill("Password", "short")
        person.press("Sign up")
        take(person, "sign-up")
        fill_in(person)
        take(person, "todos")
        state = person.context.storage_state()
        phone = Person(chromium.new_context(viewport=PHONE, color_scheme="dark", storage_state=state), base_url)
        phone.open("/todos")
        take(phone, "phone")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        answers = {"project_name": "Pet Shop", "database": "sqlite", "web_pages": "yes"}
        run_cookiecutter(ROOT, Path(folder), **answers).check_returncode()
        with serve(["make", "run"], Path(folder, "out", "pet-shop")) as server:
            take_all(server.base_url)


if __name__ == "__main__":
    main()
