"""The files of a resource, before the formatter has laid them out."""

import ast
import tomllib
from dataclasses import replace

import pytest
from jinja2 import Environment
from resources.build import Resource, build, build_pages, build_texts
from resources.fields import Scope, parse_fields
from resources.names import Names
from resources.project import Project

from tests.support.template import ROOT, SERVICE

PROJECT = Project(ROOT / SERVICE)
NOTE = Names("meeting_note")
FIELDS = (
    "title:str(200):unique body:text due:date? amount:decimal(12,2)=9.99 status:enum(open,on-hold)=open at:datetime"
    " key:uuid:index active:bool=true rank:int=0 extra:json={} parent:ref(meeting_notes)? author:ref(users)?"
)
SCOPES: tuple[Scope, ...] = ("owner", "shared", "admin")


def make_resource(scope: Scope, fields: str) -> Resource:
    parsed = parse_fields(NOTE, fields)
    resolved = [replace(each, reference=PROJECT.resolve(each, scope)) if each.target else each for each in parsed]
    return Resource(NOTE, scope, tuple(resolved), {"parent_id": "title"})


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("fields", [FIELDS, "rank:int", "author:ref(users)", "memo:text?"])
def test_every_file_is_valid(scope: Scope, fields: str) -> None:
    resource = make_resource(scope, fields)

    files = build(resource) | build_pages(resource)

    for name, text in files.items():
        if name.endswith(".py"):
            ast.parse(text, name)
        else:
            Environment(autoescape=True).parse(text, name)
    assert NOTE.plural in tomllib.loads(build_texts(resource))


def test_forms_have_neither_json_nor_accounts() -> None:
    resource = make_resource("owner", FIELDS)

    shown = {field.name for field in resource.shown}

    assert {field.name for field in resource.fields} - shown == {"extra", "author_id"}
    assert resource.missing_in_forms == []
    assert [field.name for field in make_resource("owner", "author:ref(users)").missing_in_forms] == ["author_id"]


@pytest.mark.parametrize(("scope", "owner"), [("owner", True), ("shared", False), ("admin", False)])
def test_queries_of_own_rows_compare_the_owner(scope: Scope, owner: bool) -> None:
    files = build(make_resource(scope, "title:str(20):unique"))
    service, router = files["app/meeting_notes/service.py"], files["app/meeting_notes/router.py"]

    assert ("owner_id" in service) is owner
    assert ("_admin: AdminUser" in router) is (scope == "admin")
    assert 'prefix="/meeting-notes"' in router
