"""A real browser that collects errors and warnings and checks pages with axe."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Response, expect, sync_playwright

# Browsers of the system, because Playwright's own would have to be downloaded.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
# Long, so that a busy machine fails no test.
PATIENCE_MILLISECONDS = 60_000
# More focusable elements than any page has.
MOST_STOPS = 60
# Chromium logs this for every page with an error status.
REFUSAL = "Failed to load resource: the server responded with a status of "

expect.set_options(timeout=PATIENCE_MILLISECONDS)


def find_chromium() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.fail(f"There is no browser here: install one of {', '.join(NAMES)}, or leave out with -m 'not browser'.")
    return found


@contextmanager
def open_chromium(*more_flags: str) -> Iterator[Browser]:
    # Chromium's sandbox does not work for root.
    flags = [*FLAGS, *more_flags, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_chromium(), args=flags, timeout=PATIENCE_MILLISECONDS, handle_sigint=False
        )
        try:
            yield browser
        finally:
            browser.close()


class Person:
    """A browser page, and the browser's errors and warnings. Elements are found by their accessible names."""

    def __init__(self, context: BrowserContext, base_url: str) -> None:
        self.context = context
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        self.base_url = base_url
        self.complaints: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("response", self._look)

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(REFUSAL):
            self.complaints.append(message.text)

    def _look(self, response: Response) -> None:
        if response.status >= 400 and not response.request.is_navigation_request():
            self.complaints.append(f"{response.status} for {response.url}")

    @property
    def path(self) -> str:
        return self.page.url.removeprefix(self.base_url)

    def open(self, path: str) -> Response:
        response = self.page.goto(f"{self.base_url}{path}")
        assert response is not None
        return response

    def fill(self, label: str, text: str) -> None:
        self.page.get_by_label(label, exact=True).fill(text)

    def press(self, name: str, *, within: str | None = None) -> None:
        """Press a button of the page, or of the list item with this text."""
        scope = self.page.locator("main") if within is None else self.page.locator("li", has_text=within)
        scope.get_by_role("button", name=name, exact=True).click()

    def follow(self, key: str = "Enter") -> None:
        """Press a key on the focused element, and wait for the navigation that it starts."""
        with self.page.expect_navigation():
            self.page.keyboard.press(key)

    def sees(self, text: str) -> None:
        expect(self.page.locator("body")).to_contain_text(text)

    def does_not_see(self, text: str) -> None:
        expect(self.page.locator("body")).not_to_contain_text(text)

    def tab_to(self, name: str) -> None:
        """Press Tab until the control of this name has the focus, and check that its focus outline is visible."""
        for _ in range(MOST_STOPS):
            self.page.keyboard.press("Tab")
            focused = self.page.locator(":focus")
            if focused.count() and name in (focused.inner_text().strip(), self._label_of_focused()):
                outline: str = focused.evaluate("element => getComputedStyle(element).outlineStyle")
                assert outline != "none", f"nothing shows that {name} has the focus"
                return
        pytest.fail(f"Tab does not lead to {name} on {self.path}")

    def _label_of_focused(self) -> str:
        label: str = self.page.evaluate("document.activeElement.labels?.[0]?.innerText ?? ''")
        return label.strip()

    def width_that_is_cut_off(self) -> int:
        """Return the number of pixels by which the page is wider than the window."""
        pixels: int = self.page.evaluate(
            "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
        )
        return pixels

    def find_barriers(self) -> list[str]:
        """Check the page with all rules of axe; return violations, and results that need a review by a person."""
        found = Axe().run(self.page, options={"resultTypes": ["violations", "incomplete"]}).response
        return [
            f"{kind['id']} on {self.path}: {node['html']} ({node['failureSummary']})"
            for kind in (*found["violations"], *found["incomplete"])
            for node in kind["nodes"]
        ]
