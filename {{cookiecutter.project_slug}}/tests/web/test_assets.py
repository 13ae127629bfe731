import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.browsing import Browser


async def test_static_files_have_hashed_names_and_are_cached_forever(browser: Browser) -> None:
    await browser.open("/")
    (style,) = re.findall(r'<link rel="stylesheet" href="(/static/pages\.[0-9a-f]{16}\.css)">', browser.text)

    answer = await browser.client.get(style)

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/css")
    assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
    for missing in ("/static/pages.css", f"{style}x", "/static/..%2fsettings.py"):
        assert (await browser.client.get(missing)).status_code == 404


@pytest.fixture
def published(tmp_path: Path) -> dict[str, bytes]:
    """Return the files that a deployment copies for the web server."""
    command = [sys.executable, "-m", "app.web.assets", str(tmp_path)]
    subprocess.run(command, check=True)  # noqa: S603  # fixed
    return {file.name: file.read_bytes() for file in tmp_path.iterdir()}


async def test_published_files_include_all_that_pages_reference(browser: Browser, published: dict[str, bytes]) -> None:
    await browser.open("/")

    named = set(re.findall(r'"/static/([^"]+)"', browser.text))
    assert named
    assert named <= set(published)
    for name, content in published.items():
        assert (await browser.client.get(f"/static/{name}")).content == content
