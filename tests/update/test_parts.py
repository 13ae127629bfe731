"""Parts of the updater that read texts: changelogs, records, answers and migrations."""

import re
import tomllib

import pytest
from jinja2 import Environment
from updating import migrations, notes, record
from updating.errors import RefusalError

from tests.support import nasty
from tests.support.template import ROOT
from tests.update.teams import UPDATER

HEADER = re.compile(r"(?ms)^# /// script\n(.*?)^# ///$")
OLD = """\
# Changelog

What matters.

## Unreleased

- First, in
  two lines.
- Second.
"""
NEW = """\
# Changelog

What matters to others.

## Unreleased

- Fourth.

## 1.0.0 (2026-11-30)

A release with a paragraph
in two lines.

- First, in two
  lines.
- Third:
  - a part
    of it
- Second.
"""


def test_new_entries_are_found_by_section_also_if_old_ones_have_moved() -> None:
    assert notes.find_new_entries(OLD, NEW) == {
        "Unreleased": ["- Fourth."],
        "1.0.0 (2026-11-30)": ["A release with a paragraph\nin two lines.", "- Third:\n  - a part\n    of it"],
    }


def test_same_or_older_changelog_has_no_notes() -> None:
    assert notes.find_new_entries(NEW, NEW) == {}
    assert notes.find_new_entries(NEW, OLD) == {}


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("", {}),
        ("a=b", {"a": "b"}),
        ("  a=b   c=d=e ", {"a": "b", "c": "d=e"}),
        ("a='b c' d=\"e 'f'\" g=", {"a": "b c", "d": "e 'f'", "g": ""}),
        ("a=b a=b", {"a": "b"}),
        ("'a=$HOME `id` #%'", {"a": "$HOME `id` #%"}),
    ],
)
def test_answers_are_words_of_a_shell(text: str, answers: dict[str, str]) -> None:
    assert record.parse_answers(text) == answers


@pytest.mark.parametrize("text", ["a", "a=b c", "a='b", "a=b a=c"])
def test_other_answers_are_refused(text: str) -> None:
    with pytest.raises(RefusalError, match="ANSWERS"):
        record.parse_answers(text)


@pytest.mark.parametrize(
    "text", [*nasty.ACCEPTED.values(), "{{ x }}", "{% raw %}", "{# no comment #}", "#% if x", " #% if", 'a{{"b\\"}}']
)
def test_quoted_text_is_rendered_unchanged(text: str) -> None:
    environment = Environment(line_statement_prefix="#%", autoescape=False)  # noqa: S701  # as cookiecutter does, for files that are not HTML

    assert environment.from_string(record.quote_for_template(text)).render() == text


def migration(revision: str, parent: str | None) -> str:
    return f'"""A migration."""\n\nrevision: str = "{revision}"\ndown_revision = {parent!r}\n'


def test_one_chain_needs_nothing() -> None:
    chain = migrations.read_chain({"1": migration("1", None), "2": migration("2", "1")}, {"2"})

    assert (chain.heads, chain.branches, chain.orphans) == (["2"], [], [])


def test_first_of_the_new_migrations_is_the_branch() -> None:
    sources = {
        "1": migration("1", None),
        "2": migration("2", "1"),
        "3": migration("3", "2"),
        "1001": migration("1001", "1"),
    }
    chain = migrations.read_chain(sources, {"2", "3"})

    assert (chain.heads, chain.own_heads) == (["1001", "3"], ["1001"])
    assert [each.revision for each in chain.branches] == ["2"]


def test_two_chains_of_the_project_are_not_the_template_s() -> None:
    sources = {"a": migration("a", None), "b": migration("b", "a"), "c": migration("c", "a"), "d": migration("d", "c")}
    chain = migrations.read_chain(sources, {"d"})

    assert (chain.heads, chain.branches, chain.orphans) == (["b", "d"], [], [])


def test_new_migration_without_its_predecessor_is_an_orphan() -> None:
    chain = migrations.read_chain({"1": migration("1", None), "3": migration("3", "2")}, {"3"})

    assert [(each.revision, each.parents) for each in chain.orphans] == [("3", ("2",))]
    assert chain.own_heads == ["1"]


@pytest.mark.parametrize("source", ["", "revision = 1\n", "<<<<<<< HEAD\n", "revision = make()\n", "\0"])
def test_other_files_are_no_migrations(source: str) -> None:
    assert migrations.parse_migration("x.py", source) is None


def test_merge_migration_has_several_predecessors() -> None:
    found = migrations.parse_migration("x.py", 'revision = "c"\ndown_revision = ("a", "b")\n')

    assert found is not None
    assert found.parents == ("a", "b")


def test_script_depends_on_the_same_cookiecutter_as_this_repository() -> None:
    match = HEADER.search(UPDATER.read_text(encoding="utf-8"))
    assert match
    header = tomllib.loads(re.sub(r"(?m)^# ?", "", match[1]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert header["dependencies"] == project["dependency-groups"]["bake"]
    assert header["requires-python"] == project["project"]["requires-python"]
