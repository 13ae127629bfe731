"""Adds a field to a resource, also to one that was written or changed by hand, at places found in the syntax tree."""

import ast
from collections.abc import Iterable

from resources.build import render_field_tests
from resources.editing import insert, unrecognized
from resources.errors import RefusedError
from resources.fields import Field
from resources.names import Names
from resources.project import Project

MODEL_IMPORTS = """\
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID
from sqlalchemy import JSON, String, Text
from sqlalchemy.orm import mapped_column
from app.core.db.models import FixedPoint
"""
SCHEMA_IMPORTS = """\
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID
from pydantic import Field
from app.core.http.schemas import Int32, JsonObject, Line, MultiLine, NonEmptyLine, Time
"""
TEST_IMPORTS = """\
import json
import httpx2
import pytest
"""


def check_addable(field: Field) -> None:
    """Raise RefusedError for a field that cannot be added to a resource that exists."""
    if field.kind == "ref" or field.unique:
        raise RefusedError(
            f"{field.typed}: a {'reference' if field.kind == 'ref' else 'unique field'} is checked in the queries of a"
            " resource, which this command does not change. Give it when you create the resource, or add it by hand."
        )
    if field.required:
        raise RefusedError(
            f"{field.typed} is required and has no default, so existing rows would have no value for it: give a"
            f" default, such as {field.typed}:{field.kind}=..., or make it optional: {field.typed}:{field.kind}?"
        )


def extend(project: Project, names: Names, field: Field) -> dict[str, str]:
    """Return the new texts of the changed files by their paths. Raises RefusedError if a place is not recognized."""
    folder = f"app/{names.plural}"
    models, schemas = f"{folder}/models.py", f"{folder}/schemas.py"
    test = f"tests/{names.plural}/test_{names.plural}.py"
    return {
        models: _extend_models(project, models, names, field),
        schemas: _extend_schemas(project, schemas, names, field),
        test: _extend_tests(project, test, names, field),
    }


def _extend_models(project: Project, name: str, names: Names, field: Field) -> str:
    model = _find_class(project, name, names.cls)
    record = _find_class(project, name, f"{names.cls}Record")
    _refuse_name(field, [model, record], name)
    columns = [each for each in _fields(model) if ast.unparse(each.annotation).startswith("Mapped[")]
    columns = [each for each in columns if each.value is None or "relationship(" not in ast.unparse(each.value)]
    if not columns:
        raise unrecognized(name, f"the columns of {names.cls}")
    before = next((each for each in _fields(record) if ast.unparse(each.target) == "created_at"), None)
    text = project.read(name)
    line = f"{field.name}: {field.annotation}\n"
    places = [(columns[-1].end_lineno or 0, f"    {field.column}\n")]
    places.append((before.lineno - 1, f"    {line}") if before else (record.end_lineno or 0, f"    {line}"))
    if field.kind == "enum":
        members = "".join(f'    {member} = "{value}"\n' for member, value in field.members)
        start = min([model.lineno, *(each.lineno for each in model.decorator_list)])
        places.append((start - 1, f"class {field.enum}(StrEnum):\n{members}\n\n"))
    return _add_imports(project, name, _add_lines(text, places), MODEL_IMPORTS)


def _extend_schemas(project: Project, name: str, names: Names, field: Field) -> str:
    classes = [_find_class(project, name, f"{names.cls}{suffix}") for suffix in ("Create", "Update", "Read")]
    _refuse_name(field, classes, name)
    lines = (field.creation, field.change, f"{field.name}: {field.annotation}")
    places = []
    for each, line in zip(classes, lines, strict=True):
        fields = _fields(each)
        if not fields:
            raise unrecognized(name, f"the fields of {each.name}")
        places.append((fields[-1].end_lineno or 0, f"    {line}\n"))
    enum = f"from app.{names.plural}.models import {field.enum}\n" if field.kind == "enum" else ""
    return _add_imports(project, name, _add_lines(project.read(name), places), SCHEMA_IMPORTS + enum)


def _extend_tests(project: Project, name: str, names: Names, field: Field) -> str:
    text, tree = project.read(name), project.parse(name)
    makers = [f"create_{names.singular}", f"add_{names.singular}"]
    maker = next((each for each in tree.body if isinstance(each, ast.AsyncFunctionDef) and each.name in makers), None)
    assigned = {ast.unparse(target): node for node in tree.body for target in _targets(node)}
    if maker is None or names.plural_constant not in assigned:
        raise unrecognized(name, f"the constant {names.plural_constant} or the function {makers[0]}")
    sample = getattr(assigned.get(names.constant), "value", None)
    # The generated tests compare whole bodies with this one.
    if isinstance(sample, ast.Dict):
        text = insert(text, sample.lineno, sample.col_offset + 1, f'"{field.name}": {field.sample}, ')
    through = maker.args.args[0].arg
    tests = render_field_tests(names, field, project.find_scope(names), maker.name, through)
    return _add_imports(project, name, f"{text.rstrip()}\n\n\n{tests}", TEST_IMPORTS)


def _targets(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def _find_class(project: Project, name: str, cls: str) -> ast.ClassDef:
    for node in project.parse(name).body:
        if isinstance(node, ast.ClassDef) and node.name == cls:
            return node
    raise unrecognized(name, f"the class {cls}")


def _fields(cls: ast.ClassDef) -> list[ast.AnnAssign]:
    return [each for each in cls.body if isinstance(each, ast.AnnAssign)]


def _refuse_name(field: Field, classes: Iterable[ast.ClassDef], name: str) -> None:
    for cls in classes:
        if field.name in {ast.unparse(each.target) for each in _fields(cls)}:
            raise RefusedError(f"{cls.name} in {name} already has a field {field.name}: choose another name.")


def _add_lines(text: str, places: list[tuple[int, str]]) -> str:
    """Insert each text after the line of this number."""
    lines = text.splitlines(keepends=True)
    for line, added in sorted(places, reverse=True):
        lines.insert(line, added)
    return "".join(lines)


def _add_imports(project: Project, name: str, text: str, imports: str) -> str:
    """Add imports before the others; those that are not needed are removed later, and the rest is sorted."""
    first = next((each for each in project.parse(name).body if isinstance(each, ast.Import | ast.ImportFrom)), None)
    if first is None:
        raise unrecognized(name, "the imports")
    return _add_lines(text, [(first.lineno - 1, imports)])
