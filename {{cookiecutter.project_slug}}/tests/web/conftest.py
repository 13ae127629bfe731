from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI

from tests.support.browsing import EMAIL, Browser, open_browser


@pytest.fixture
async def browser(app: FastAPI) -> AsyncIterator[Browser]:
    async with open_browser(app) as browser:
        yield browser


@pytest.fixture
async def signed_in(browser: Browser) -> Browser:
    await browser.enter(EMAIL)
    return browser
