"""The grammar of fields, and what it refuses."""

import ast
import re

import pytest
from resources.errors import RefusedError
from resources.fields import Field, parse_fields
from resources.names import Names, parse_name, pluralize

from tests.support.template import ROOT, SERVICE

NOTE = Names("note")
FEATURES = (ROOT / SERVICE / "docs" / "features.md").read_text(encoding="utf-8")
VALID = [
    "title:str(200)",
    "code:str(20):unique",
    "body:text=''",
    "greeting:str(20)='hello (you): x=1'",
    "rank:int=-5:index",
    "amount:decimal(12,2)=9.9",
    "share:decimal(3,3)?",
    "done:bool=false",
    "due:date?=2026-01-31",
    "at:datetime=2026-01-31T09:30:00+02:00",
    "key:uuid=01890000-0000-7000-8000-000000000001",
    "status:enum(open,on-hold)=on-hold",
    "extra:json={}",
    "meta:json?",
    "project:ref(projects)",
    "assignee:ref(users)?:unique",
]
WRONG = {
    "title": "title is not a field: its form is name:type",
    "title:str(200": "is not a field",
    "title:strong": "strong is not a type of a field. Types: str(n), text",
    "title:str": "give the maximum length of str",
    "title:str(0)": "from 1 to 10000",
    "title:str(10001)": "from 1 to 10000",
    "title:text(5)": "text takes nothing in parentheses",
    "title:decimal(16,2)": "from 1 to 15",
    "title:decimal(2,3)": "give the number of digits",
    "title:decimal": "such as title:decimal(12,2)",
    "title:enum()": "give the values of enum",
    "title:enum(Open)": "lower-case",
    "title:enum(a-b,a_b)": "two values of enum are equal",
    "read:enum(a)": "uses the class NoteRead",
    "title:ref": "name what ref refers to",
    "project_id:ref(projects)": "leave out _id",
    "note:ref(projects)": "uses the name note_id",
    "project:ref(projects)=1": "a reference cannot have a default",
    "Title:text": "lower-case letters",
    "2nd:text": "beginning with a letter",
    "a__b:text": "single underscores",
    "class:text": "class is a keyword of Python",
    "match:text": "match is a keyword of Python",
    "hash:text": "hash is a built-in name of Python",
    "id:int": "id is a built-in name of Python",
    "owner_id:int": "The service itself uses the name owner_id",
    "count:int": "uses the name count",
    "metadata:json": "uses the name metadata",
    "model_name:text": "uses the name model_name",
    "date:date": "uses the name date",
    f"{'x' * 31}:text": "longer than 30 characters",
    ":text": "There is no name",
    "a:text a:int": "The field a occurs twice",
    "project:ref(projects) project_id:uuid": "The field project_id occurs twice",
    "a:text:unique": "cannot be unique, because its values may be too long",
    "a:str(700):index": "cannot be index, because its values may be too long",
    "a:bool:unique": "bool has too few values",
    "a:str(5)=abcdef:index": "abcdef is not a valid default for str",
    "a:str(5)=": "nothing is not a valid default",
    "a:str(5):unique=x": "is not a field",
    "a:str(5)=x:unique": "a unique field cannot have a default",
    "a:int=1.5": "1.5 is not a valid default for int; give =0",
    "a:int=2147483648": "is not a valid default",
    "a:bool=yes": "give =true or =false",
    "a:decimal(3,1)=1.25": "is not a valid default",
    "a:decimal(3,1)=100": "is not a valid default",
    "a:decimal(3,1)=NaN": "is not a valid default",
    "a:date=2026-02-30": "is not a valid default",
    "a:datetime=2026-01-31T09:30:00": "with its time zone",
    "a:uuid=1": "is not a valid default",
    "a:enum(b)=c": "one of its values",
    "a:json=[]": "give ={}",
    "": "There are no fields",
    " ".join(f"a{number}:int" for number in range(91)): "at most 90 fields",
}


def parse(text: str) -> list[Field]:
    return parse_fields(NOTE, text)


@pytest.mark.parametrize("text", VALID)
def test_valid_field_becomes_python(text: str) -> None:
    (field,) = parse(text)

    for source in (field.creation, field.change, f"{field.name}: {field.annotation}"):
        ast.parse(source)
    values = () if field.kind == "ref" else (field.sample, field.other, field.json_default)
    for source in (*values, *field.invalid):
        ast.parse(source, mode="eval")


def test_fields_are_separated_by_spaces_outside_of_quotes_and_parentheses() -> None:
    fields = parse("  a:enum(x, y)=y\n b:str(20)='two words' c:decimal(5, 1)? ")

    assert [field.name for field in fields] == ["a", "b", "c"]
    assert (fields[0].default, fields[1].default, fields[2].digits) == ("NoteA.Y", '"two words"', (5, 1))


def test_default_time_is_converted_to_utc() -> None:
    (field,) = parse("at:datetime=2026-01-31T01:30:00+02:00")

    assert field.default == "datetime(2026, 1, 30, 23, 30, 0, tzinfo=UTC)"


@pytest.mark.parametrize(("text", "reason"), WRONG.items(), ids=lambda text: text[:40])
def test_wrong_field_is_refused_in_a_sentence(text: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(reason)):
        parse(text)


@pytest.mark.parametrize(
    ("name", "reason"),
    {
        "": "There is no name",
        "Note": "lower-case",
        "my note": "lower-case",
        "note; rm -rf": "lower-case",
        "../note": "lower-case",
        "class": "keyword of Python",
        "object": "built-in name of Python",
        "session": "a name of the service's own code",
        "query": "a name of the service's own code",
    }.items(),
)
def test_wrong_name_of_a_resource_is_refused_in_a_sentence(name: str, reason: str) -> None:
    with pytest.raises(RefusedError, match=re.escape(reason)):
        parse_name(name)


@pytest.mark.parametrize(
    ("singular", "plural"),
    {
        "note": "notes",
        "category": "categories",
        "day": "days",
        "box": "boxes",
        "class": "classes",
        "branch": "branches",
        "meeting_note": "meeting_notes",
    }.items(),
)
def test_plural_is_regular(singular: str, plural: str) -> None:
    assert pluralize(singular) == plural


def test_manual_lists_every_type_and_its_example_is_valid() -> None:
    section = FEATURES.partition("\n## Resources\n")[2].partition("\n## ")[0]
    types = re.findall(r"(?m)^\| `(\w+)(?:\([^`]*\))?` \|", section)
    (example,) = re.findall(r"NAME=note FIELDS='(.*)'", section)

    assert types == ["str", "text", "int", "decimal", "bool", "date", "datetime", "uuid", "enum", "json", "ref"]
    assert len(parse(example)) == 5
    assert "`name:type[?][=default][:unique][:index]`" in section
