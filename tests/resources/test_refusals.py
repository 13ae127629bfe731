"""Refusals of the commands, before anything is written."""

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
from resources.build import Resource, build
from resources.commands import add_field, add_resource, remove_resource
from resources.editing import add_layer, enter
from resources.errors import RefusedError
from resources.fields import parse_fields
from resources.names import Names
from resources.project import Project
from resources.removing import take_out

from tests.support.template import ROOT, SERVICE

PLACE = ROOT / SERVICE
BASE = {"NAME": "note", "FIELDS": "title:str(200)", "SHARED": "", "ADMIN": ""}


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Project:
    """The service in its folder, which no test may change."""

    def refuse(_project: Path) -> None:
        raise AssertionError("the command was about to write")

    monkeypatch.setattr("resources.commands.prepare", refuse)
    return Project(PLACE)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"NAME": "todo"}, "app/todos already exists"),
        ({"NAME": "file"}, "app/files already exists"),
        ({"NAME": "expense"}, "app/projects/models.py already has the table expenses"),
        ({"NAME": "user_session"}, "already has the table"),
        ({"FIELDS": "x:ref(nothings)"}, "x refers to nothings, but no model in app/ has this table"),
        ({"FIELDS": "x:ref(expenses)"}, "x cannot refer to expenses: app/projects/service.py has no function"),
        ({"FIELDS": "x:ref(notes)"}, "a reference to the same resource must be optional"),
        ({"FIELDS": "x:ref(projects)", "SHARED": "1"}, "each row of projects belongs to one account"),
        ({"SHARED": "1", "ADMIN": "1"}, "SHARED and ADMIN exclude each other"),
        ({"SHARED": "yes"}, "SHARED is yes: set it to 1, or leave it out"),
    ],
)
def test_resource_that_does_not_fit_is_refused(project: Project, values: dict[str, str], reason: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(reason)):
        add_resource(project, BASE | values)


@pytest.mark.parametrize(
    ("resource", "field", "reason"),
    [
        ("note", "a:int=0", "There is no resource note"),
        ("", "a:int=0", "Nothing is not the name of a resource"),
        ("../todos", "a:int=0", "is not the name of a resource"),
        ("file", "a:int=0", "There is no resource file"),
        ("todo", "a:int", "a is required and has no default"),
        ("todo", "title:text?", "already has a field title"),
        ("todo", "a:ref(projects)?", "a reference is checked in the queries"),
        ("todo", "a:int?:unique", "a unique field is checked in the queries"),
        ("todo", "a:int=0 b:int=0", "Give one field"),
    ],
)
def test_field_that_does_not_fit_is_refused(project: Project, resource: str, field: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(reason)):
        add_field(project, {"RESOURCE": resource, "FIELD": field})


def test_unknown_resource_is_not_removed(project: Project) -> None:
    with pytest.raises(RefusedError, match="There is no resource note"):
        remove_resource(project, {"RESOURCE": "note"})


def copy_files(target: Path, *names: str) -> Project:
    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((PLACE / name).read_text(encoding="utf-8"), encoding="utf-8")
    return Project(target)


LISTS = ("app/features.py", "pyproject.toml", "docs/errors.md", "tests/test_attacks.py")


@pytest.mark.parametrize(
    ("name", "old", "new", "place"),
    [
        ("app/features.py", "FEATURES: tuple", "ALL: tuple", "the assignment to FEATURES"),
        ("pyproject.toml", 'containers = ["app"]', 'containers = ["app", "x"]', "the list of layers"),
        ("pyproject.toml", "audit | health", "audit", "the layer with health"),
        ("docs/errors.md", "| 404 |", "| four hundred |", "the table of the codes"),
        ("tests/test_attacks.py", "CHECKED_ELSEWHERE: set", "ELSEWHERE: set", "the assignment to CHECKED_ELSEWHERE"),
    ],
)
def test_place_that_is_not_recognized_is_named(tmp_path: Path, name: str, old: str, new: str, place: str) -> None:
    project = copy_files(tmp_path, *LISTS)
    path = tmp_path / name
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")

    with pytest.raises(RefusedError, match=re.escape(f"{name} has been changed so that {place}")):
        enter(project, make_resource())


def make_resource() -> Resource:
    note = Names("note")
    return Resource(note, "shared", tuple(parse_fields(note, "title:str(20):unique")))


def test_removal_restores_the_lists(tmp_path: Path) -> None:
    project = copy_files(tmp_path, *LISTS)
    texts = {name: project.read(name) for name in LISTS}
    before = {name: ast.dump(ast.parse(text)) if name.endswith(".py") else text for name, text in texts.items()}
    resource = make_resource()

    entered = enter(project, resource)
    for name, text in (build(resource) | entered).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    removed = take_out(project, resource.names)

    assert entered.keys() == removed.keys() == {*LISTS}
    # The layout is the formatter's.
    for name in LISTS:
        after = removed[name]
        assert (ast.dump(ast.parse(after)) if name.endswith(".py") else after) == before[name], name


def test_resource_stands_above_those_that_it_refers_to() -> None:
    project, task = Project(PLACE), Names("task")
    (field,) = parse_fields(task, "project:ref(projects)")
    resolved = replace(field, reference=project.resolve(field, "owner"))
    resource = Resource(task, "owner", (resolved,))

    layers = add_layer(project.read("pyproject.toml"), resource)

    assert layers.index('    "tasks",\n') < layers.index('    "audit | health |')
