"""The documents of the settings in each baked project are identical to the output of its `make docs`."""

import re
import sys

import pytest

from tests.support.projects import Bake


@pytest.mark.parametrize("web_pages", ["no", "yes"])
@pytest.mark.parametrize("weather_example", ["no", "yes"])
@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_documents_of_the_settings_are_up_to_date(
    database: str, weather_example: str, web_pages: str, bake: Bake
) -> None:
    deployment = "docker" if database == "postgresql" else "vm"
    project = bake(database=database, deployment=deployment, weather_example=weather_example, web_pages=web_pages)
    before = project.list_texts()

    project.run([sys.executable, "-m", "scripts.document_settings"], PYTHONDONTWRITEBYTECODE="1")

    assert project.list_texts() == before
    for name in ("docs/settings.md", ".env.example"):
        assert re.findall(r".+\n(?:## |# --- ).+", project.read(name)) == [], "a section needs a blank line before it"
    assert ("| `WEATHER_API_KEY` |" in project.read("README.md")) == (weather_example == "yes")
    assert ("| `WEB_LANGUAGE` |" in project.read("docs/settings.md")) == (web_pages == "yes")
