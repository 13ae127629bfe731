"""A block that a choice removes leaves no trace in the layout of a file, in any combination of choices."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path, PurePath

import pytest

from tests.support.projects import Bake
from tests.support.rendering import list_conditions, render_combinations
from tests.support.template import CHOICES, CONTEXT, ROOT, SERVICE, is_copied, list_files
from tests.test_generation import TAGGED

TEXTS = [
    path.relative_to(SERVICE).as_posix()
    for path in list_files(SERVICE)
    if (ROOT / path).is_file() and b"\0" not in (ROOT / path).read_bytes()
]
RENDERED = [name for name in TEXTS if not is_copied(name)]
# Answers as long as the Jinja tags that they replace, so that rendering keeps the length of each line.
ANSWERS = {
    **{name: value for name, value in CONTEXT.items() if isinstance(value, str)},
    "project_slug": "as-long-as-its-own-tag-in-text",
    "domain_name": "as-long-as-its.tag.example.com",
    "_jinja2_env_vars": CONTEXT["_jinja2_env_vars"],
}
# A line in the middle of a paragraph looks broken if it is shorter than SHORTEST_LINE, and the next word would fit
# within FILL characters.
SHORTEST_LINE, FILL = 64, 100
# Python's own style has two blank lines between definitions.
PYTHON = {".py", ".mako"}

# Names of the files that some choices remove: their paths, or file names that are unique.
CONDITIONAL = {name: name for name in TEXTS if list_conditions(name)}
CONDITIONAL |= {
    base: name
    for name in CONDITIONAL
    if "." in (base := PurePath(name).name).strip(".") and [PurePath(path).name for path in TEXTS].count(base) == 1
}

CONFIGURATION = {".ini", ".service", ".socket", ".target", ".timer", ".toml"}
COMMENT = re.compile(r"\s*[#;](?!!)")
CLOSING = re.compile(r"\s*([\]})]|fi$|done$|esac$|else$|elif )")
OPENING = re.compile(r"[\[{(]$|\b(then|do|else)$")
ITEM = re.compile(r"\s*([-*]|\d+\.) ")
# The first word of a line; a link counts as one word, because it is never broken.
FIRST_WORD = re.compile(r"\s*(\[[^\]]*\]\([^)]*\)\S*|\S+)")
# The first line of a part of a file; a blank line separates it from the previous part.
PARTS = {
    "compose": re.compile(r"[\w.-]+:|  [\w.-]+:$"),
    "configuration": re.compile(r"\["),
    "docker": re.compile(r"FROM "),
    "make": re.compile(r"[\w./-]+:(?!=)"),
    "nginx": re.compile(r"(\w+ .*|events|http|server) ?\{$"),
    "settings": re.compile(r"# --- "),
    "shell": re.compile(r"\w+\(\) "),
    "yaml": re.compile(r"[\w.-]+:"),
}


def name_kind(name: str) -> str:
    path = PurePath(name)
    if path.suffix == ".md":
        return "markdown"
    if path.suffix == ".sh":
        return "shell"
    if path.suffix in {".yaml", ".yml"}:
        return "compose" if path.name.startswith("compose.") else "yaml"
    if path.name in {"Dockerfile", "Makefile"}:
        return path.name.removesuffix("file").lower()
    if "nginx" in path.as_posix() and path.suffix == ".conf":
        return "nginx"
    if path.suffix in CONFIGURATION or path.name == ".editorconfig" or path.suffix == ".conf":
        return "configuration"
    return "settings" if path.name in {".env.example", "env", "owner"} else "other"


def find_scars(name: str, text: str) -> set[str]:
    kind = name_kind(name)
    lines = text.removesuffix("\n").split("\n")
    found = [*find_blank_lines(text, PurePath(name).suffix in PYTHON or kind == "markdown")]
    if kind == "markdown":
        found += find_scars_of_markdown(list_prose(lines))
    elif kind != "other":
        found += [
            *find_missing_blank_lines(kind, lines),
            *find_lost_comments(kind, lines),
            *find_broken_comments(lines),
        ]
    return set(found)


def find_blank_lines(text: str, may_be_doubled: bool) -> Iterator[str]:
    if not text.endswith("\n") or text.endswith("\n\n"):
        yield "does not end with one line break"
    if text.startswith("\n"):
        yield "begins with a blank line"
    if not may_be_doubled:
        yield from (f"two blank lines after: {line}" for line in re.findall(r"(.+)\n\n\n", text))
    yield from (f"white space at the end of: {line}" for line in text.split("\n") if line != line.rstrip())


def find_missing_blank_lines(kind: str, lines: list[str]) -> Iterator[str]:
    for above, line in pairwise(skip_comments(kind, lines)):
        if above and is_new_part(kind, above, line):
            yield f"no blank line before: {line}"
    for above, line in pairwise(lines):
        if kind in {"nginx", "shell"} and above == "}" and line:
            yield f"no blank line after }}, before: {line}"
        if not line and OPENING.search(above):
            yield f"a blank line after: {above}"
        if not above and CLOSING.match(line):
            yield f"a blank line before: {line}"


def skip_comments(kind: str, lines: list[str]) -> list[str]:
    """Leave out comments, which belong to the line after them, except in a settings file: there they separate parts."""
    return lines if kind == "settings" else [line for line in lines if not COMMENT.match(line)]


def is_new_part(kind: str, above: str, line: str) -> bool:
    if kind in {"compose", "yaml"} and not above.startswith(6 * " " if line.startswith(" ") else " "):
        return False
    if kind == "make" and not above.startswith("\t"):
        return False
    if kind == "shell" and re.fullmatch(r"\w+\(\) \{.*\}", above):
        return False
    return PARTS[kind].match(line) is not None


def find_lost_comments(kind: str, lines: list[str]) -> Iterator[str]:
    """Find comments without the code that they describe; the first comment may describe the whole file."""
    start = lines.index("") if "" in lines else len(lines)
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if (
            number > start
            and kind != "settings"
            and COMMENT.match(line)
            and (not following or CLOSING.match(following))
        ):
            yield f"nothing follows the comment: {line}"


def find_broken_comments(lines: list[str]) -> Iterator[str]:
    for line, following in pairwise(lines):
        goes_on = COMMENT.match(line) and line[-1] not in ".:;" and re.match(r"\s*[#;] [a-z]", following)
        if goes_on and is_too_short(line, following.lstrip(" #;")):
            yield f"a comment is broken after: {line}"


def list_prose(lines: list[str]) -> list[str]:
    """Replace each block of code by an empty block."""
    prose: list[str] = []
    fence = ""
    for line in lines:
        marker = re.match(r"\s*(`{3,})", line)
        if fence and marker and marker[1] == fence:
            fence = ""
            prose.append("```end")
        elif not fence:
            fence = marker[1] if marker else ""
            prose.append("```" if marker else line)
    return prose


def find_scars_of_markdown(lines: list[str]) -> Iterator[str]:
    last = ""
    for above, line in pairwise(lines):
        if not above and not line:
            yield f"two blank lines after: {last}"
        last = line or last
        if above and (line == "```" or line.startswith("#") or (line.startswith("|") and not above.startswith("|"))):
            yield f"no blank line before: {line}"
        if line and (above == "```end" or above.startswith("#") or (above.startswith("|") and line[0] != "|")):
            yield f"no blank line after: {above}"
        if ITEM.match(line) and above and not ITEM.match(above) and not above.startswith(" "):
            yield f"no blank line before: {line}"
        goes_on = is_prose(above) and is_prose(line) and not ITEM.match(line)
        # A command may stand alone on a line.
        if goes_on and not (above.endswith(":") and line.startswith("`")) and is_too_short(above, line):
            yield f"a paragraph is broken after: {above}"
    filled = [line for line in [*lines, "# "] if line]
    depth = 0
    for above, line in pairwise(filled):
        depth = count_level(above) or depth
        ends = 0 < count_level(line) <= depth
        if (above.endswith(":") and is_prose(above) and (ends or line == "```end")) or (count_level(above) and ends):
            yield f"nothing follows: {above}"
        if re.fullmatch(r"\|[-| :]+\|", above) and not line.startswith("|"):
            yield "a table without rows"


def count_level(line: str) -> int:
    """Return the level of a heading, and 0 for any other line."""
    heading = re.match(r"(#+) ", line)
    return len(heading[1]) if heading else 0


def is_prose(line: str) -> bool:
    return bool(line) and not line.startswith(("#", "|", "```"))


def is_too_short(line: str, following: str) -> bool:
    word = FIRST_WORD.match(following)
    return word is not None and len(line) < SHORTEST_LINE and len(line) + 1 + len(word[1]) <= FILL


@pytest.mark.parametrize("name", RENDERED)
def test_no_combination_of_choices_leaves_a_scar(name: str, template: Path) -> None:
    scars = {
        text: (found, chosen)
        for chosen, text in render_combinations(name, template, ANSWERS)
        if (found := find_scars(name, text))
    }
    # Name one combination for each scar, which is enough to find it.
    shown = {scar: chosen for found, chosen in reversed(scars.values()) for scar in found}
    assert shown == {}


@pytest.mark.parametrize("name", RENDERED)
def test_no_blank_line_is_lost_with_a_tag(name: str, template: Path) -> None:
    """Jinja removes a tag with the blank lines after it, so a blank line between two blocks must be before the tag."""
    text = (template / SERVICE / name).read_text(encoding="utf-8")

    assert re.findall(r"[^\n]\n( *#%.*)\n\n", text) == []


def test_files_that_are_copied_end_with_one_line_break(template: Path) -> None:
    texts = {name: (template / SERVICE / name).read_text(encoding="utf-8") for name in TEXTS if is_copied(name)}

    assert {name: found for name, text in texts.items() if text and (found := [*find_blank_lines(text, True)])} == {}


@pytest.mark.parametrize("name", RENDERED)
def test_no_text_refers_to_a_file_that_is_not_there(name: str, template: Path) -> None:
    missing = {
        word
        for chosen, text in render_combinations(name, template, ANSWERS)
        for word in set(re.findall(r"[\w.@/-]*\w", text.replace("./", ""))) & CONDITIONAL.keys()
        if not is_there(CONDITIONAL[word], chosen)
    }

    assert missing == set()


def is_there(name: str, chosen: Mapping[str, str]) -> bool:
    """Whether a file exists with these choices, for every choice of the other options."""
    return all(
        {chosen[option]} <= set(choices) if option in chosen else set(CHOICES[option]) == set(choices)
        for option, choices in list_conditions(name)
    )


@pytest.mark.parametrize("weather_example", CHOICES["weather_example"])
@pytest.mark.parametrize("web_pages", CHOICES["web_pages"])
def test_python_that_differs_is_formatted(web_pages: str, weather_example: str, bake: Bake) -> None:
    project = bake(web_pages=web_pages, weather_example=weather_example)
    ruff = str(Path(sys.executable).with_name("ruff"))

    done = subprocess.run(
        [ruff, "format", "--check", "--no-cache", TAGGED], cwd=project.path, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("scar", "name", "text"),
    [
        ("two blank lines after: a: 1", "x.yaml", "a: 1\n\n\nb: 2\n"),
        ("does not end with one line break", "x.yaml", "a: 1\n\n"),
        ("white space at the end of: a: ", "x.yaml", "a: \n"),
        ("no blank line before: b:", "x.yaml", "a:\n  c: 1\n# About b.\nb:\n"),
        (
            "no blank line before:   db:",
            "compose.yaml",
            "services:\n  app:\n    ports:\n      - a\n  db:\n    image: b\n",
        ),
        ("no blank line before: [b]", "x.toml", "[a]\nc = 1\n# About b.\n[b]\n"),
        ("no blank line before: FROM b", "Dockerfile", "FROM a\nUSER 1\nFROM b\n"),
        ("no blank line before: b:", "Makefile", "a:\n\tc\nb:\n"),
        ("no blank line before: # --- b", ".env.example", "A=1\n# --- b\nB=1\n"),
        ("no blank line after }, before: location /b {", "nginx/x.conf", "location /a {\n}\nlocation /b {\n}\n"),
        ("no blank line before: b() {", "x.sh", "A=1\nb() {\n}\n"),
        ("a blank line after: a() {", "x.sh", "a() {\n\n    b\n}\n"),
        ("a blank line before: }", "x.sh", "a() {\n    b\n\n}\n"),
        ("nothing follows the comment: # About a.", "x.sh", "b\n\n# About a.\n\nc\n"),
        ("a comment is broken after: # About", "x.sh", "# About\n# the next line.\na\n"),
        ("a paragraph is broken after: Two words", "x.md", "# A\n\nTwo words\nand then a line that goes on.\n"),
        ("two blank lines after: Text.", "x.md", "# A\n\nText.\n\n\nText.\n"),
        ("no blank line before: ## B", "x.md", "# A\n\nText.\n## B\n\nText.\n"),
        ("no blank line after: | a |", "x.md", "# A\n\n| a |\nText.\n"),
        ("nothing follows: ## A", "x.md", "# A\n\nText.\n\n## A\n\n## B\n\nText.\n"),
        ("nothing follows: The files:", "x.md", "# A\n\n## B\n\nThe files:\n\n## C\n\nText.\n"),
    ],
)
def test_each_kind_of_scar_is_found(scar: str, name: str, text: str) -> None:
    assert scar in find_scars(name, text)
