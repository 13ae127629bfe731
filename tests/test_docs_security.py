"""docs/security.md of the service: its references exist, and it answers levels 1 and 2 of OWASP ASVS 5.0."""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import pytest
from cookiecutter.utils import create_env_with_context
from jinja2 import FileSystemLoader

from tests.support.projects import Bake
from tests.support.template import CHOICES, ROOT, SERVICE, is_chosen, read_sources

PAGE = "docs/security.md"
STATES = {"met", "operator", "not met", "n/a"}
# The level of each requirement, by chapter and section: section V1.1 has two requirements, each of level 2. The page
# leaves level 3 out.
LEVELS = {
    "V1": ("22", "1111122223", "112222222223", "222", "123"),
    "V2": ("122", "112", "12223", "23"),
    "V3": ("3", "113", "12223", "11222233", "11122333", "3", "22333"),
    "V4": ("12233", "23333", "22", "1222"),
    "V5": ("2", "112333", "113", "222"),
    "V6": ("122", "111111112222", "11223333", "112233", "22222333", "2223", "33", "2222"),
    "V7": ("222", "1111", "22", "11222", "223", "22"),
    "V8": ("1233", "1123", "133", "23"),
    "V9": ("111", "1222"),
    "V10": ("22", "223", "22223", "1111122222233333", "22222", "22", "222"),
    "V11": ("2233", "22233", "11233", "1222", "23", "23", "33"),
    "V12": ("12233", "11", "22223"),
    "V13": ("2333", "222223", "2233", "1222233"),
    "V14": ("22", "12223333", "122"),
    "V15": ("12233", "12233", "1222222", "3333"),
    "V16": ("2", "22222", "2222", "222", "2223"),
    "V17": ("23", "22223333", "22"),
}
REQUIREMENTS = {
    (f"{chapter}.{section}.{number}", level)
    for chapter, sections in LEVELS.items()
    for section, levels in enumerate(sections, 1)
    for number, level in enumerate(levels, 1)
    if level != "3"
}


@dataclass(frozen=True)
class Rendered:
    page: str
    readme: str
    settings: str
    # The sources of the service by file name.
    files: dict[str, str]


@pytest.fixture(scope="module")
def rendered(bake: Bake) -> list[Rendered]:
    """Render the page with every combination of the options that it depends on."""
    project = bake()
    environment = create_env_with_context({"cookiecutter": project.answers})
    environment.loader = FileSystemLoader(ROOT / SERVICE)
    documents = [environment.get_template(name) for name in (PAGE, "README.md", "docs/settings.md")]
    sources = {name: content.decode(errors="replace") for name, content in read_sources(ROOT).items()}
    options = [option for option in CHOICES if f"cookiecutter.{option}" in sources[PAGE]]

    def render() -> Iterator[Rendered]:
        for choices in product(*(CHOICES[option] for option in options)):
            answers = project.answers | dict(zip(options, choices, strict=True))
            files = {name: text for name, text in sources.items() if is_chosen(name, answers)}
            page, readme, settings = (document.render(cookiecutter=answers) for document in documents)
            yield Rendered(page, readme, settings, files)

    return list(render())


def test_every_requirement_of_levels_1_and_2_is_answered_once(rendered: list[Rendered]) -> None:
    # The standard has 70 requirements of level 1 and 183 of level 2.
    assert len(REQUIREMENTS) == 253
    for each in rendered:
        rows = re.findall(r"(?m)^\| (V[\d.]+) \| (\d) \| [^|]+ \| ([^|]+) \| [^|]+ \|$", each.page)

        assert sorted((number, level) for number, level, _ in rows) == sorted(REQUIREMENTS)
        assert {state for _, _, state in rows} <= STATES


def test_every_file_that_the_page_names_exists(rendered: list[Rendered]) -> None:
    for each in rendered:
        named = set(re.findall(r"`([\w.@/-]+/[\w.@-]*|[\w.-]+\.(?:json|md|toml|yaml))`", each.page))

        assert {name for name in named if not any(file.startswith(name) for file in each.files)} - {
            # Media types and paths of routes.
            "application/json",
            "/docs",
            "/health",
            "/metrics",
            # `uv.lock` exists only after the installation, and each feature has a `schemas.py`.
            "uv.lock",
            "schemas.py",
        } == set()


def test_every_identifier_that_the_page_names_is_in_its_file(rendered: list[Rendered]) -> None:
    for each in rendered:
        named = re.findall(r"`(\w+)` in `([\w./]+)`", each.page)

        assert named
        assert [(name, file) for name, file in named if name not in each.files.get(file, "")] == []


def test_every_setting_and_command_that_the_page_names_is_documented(rendered: list[Rendered]) -> None:
    for each in rendered:
        settings = set(re.findall(r"`([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+)(?:=[^`]*)?`", each.page))
        commands = set(re.findall(r"`(?:python -m app )?((?:db|files|outbox|sessions|users) [a-z-]+)", each.page))

        assert "SECRET_KEY" in settings
        assert "users reencrypt" in commands
        assert {name for name in settings if f"\n| `{name}` |" not in each.settings} == set()
        assert {name for name in commands if f"`{name}" not in each.readme} == set()


def test_links_of_the_page_resolve(rendered: list[Rendered]) -> None:
    for each in rendered:
        assert "](docs/security.md)" in each.readme
        for target in re.findall(r"\]\((?!https:)([^)#]+)(?:#[^)]*)?\)", each.page):
            assert posixpath.normpath(f"docs/{target}") in each.files, target
        headings = {line.lstrip("# ") for line in each.page.splitlines() if line.startswith("#")}
        sections = set(re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", each.page))
        assert sections
        assert sections <= headings
