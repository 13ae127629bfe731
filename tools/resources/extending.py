"""Adds a field to a resource, also to one that was written or changed by hand, at places found in the syntax tree."""

import ast
import re
import tomllib
from collections.abc import Iterable

from resources.build import render_field_tests, render_field_texts, render_macro
from resources.editing import find_assignment, insert, unrecognized
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
    pages = extend_pages(project, names, field) if field.kind != "json" and has_form(project, names) else {}
    return pages | {
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
    arguments = [*maker.args.posonlyargs, *maker.args.args] if maker else []
    assigned = {ast.unparse(target): node for node in tree.body for target in _targets(node)}
    if maker is None or not arguments or names.plural_constant not in assigned:
        raise unrecognized(name, f"the constant {names.plural_constant} or the function {makers[0]}")
    sample = getattr(assigned.get(names.constant), "value", None)
    # The generated tests compare whole bodies with this one.
    if isinstance(sample, ast.Dict):
        text = insert(text, sample.lineno, sample.col_offset + 1, f'"{field.name}": {field.sample}, ')
    tests = render_field_tests(names, field, project.find_scope(names), maker.name, arguments[0].arg)
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


def has_form(project: Project, names: Names) -> bool:
    """Return whether the pages of a resource have a form as `make resource` writes it."""
    path = project.path / f"app/web/{names.plural}/router.py"
    return path.exists() and "\nFIELDS = (" in path.read_text(encoding="utf-8")


def extend_pages(project: Project, names: Names, field: Field) -> dict[str, str]:
    """Add the field to the form. Return the new texts of the changed files by their paths. Raises RefusedError."""
    folder = f"app/web/{names.plural}"
    router, form, test = f"{folder}/router.py", f"{folder}/templates/edit.html", f"tests/web/test_{names.plural}.py"
    button = f'<button>{{{{ t("{names.plural}.save") }}}}</button>\n'
    if project.read(form).count(button) != 1:
        raise unrecognized(form, "the button of the form")
    macro = f"{{{{ forms.{render_macro(names, field)} }}}}\n"
    files = {form: project.read(form).replace(button, macro + button), router: project.read(router)}
    files[router] = _add_element(files[router], router, "FIELDS", f'"{field.name}"', None)
    if field.optional:
        call = (r"(validate_form\(\w+, fields)\)", r"\1, optional=OPTIONAL)")
        files[router] = _add_element(files[router], router, "OPTIONAL", f'"{field.name}"', call)
    if field.default is not None:
        call = (rf"(render_form\(page, EDIT), ({names.singular}=None)", r"\1, DEFAULTS, \2")
        entry = f'"{field.name}": {field.form_default}'
        files[router] = _add_element(files[router], router, "DEFAULTS", entry, call)
    sample = f'"{field.name}": {field.form_sample}'
    files[test] = _add_element(project.read(test), test, "FORM", sample, None)
    for path in sorted((project.path / "app/web/locales").glob("*.toml")):
        name = path.relative_to(project.path).as_posix()
        files[name] = _add_texts(project.read(name), name, names, field)
    return files


def _add_element(text: str, name: str, target: str, element: str, call: tuple[str, str] | None) -> str:
    """Add an element to a tuple or dictionary; if there is none yet, create it and pass it in the call."""
    if call is not None and f"\n{target} = " not in text:
        fields = find_assignment(text, name, "FIELDS")
        brackets = "{%s}" if ":" in element else "(%s,)"
        changed, count = re.subn(*call, text)
        if not count:
            raise unrecognized(name, f"the place for {target}")
        return _add_lines(changed, [(fields.end_lineno or 0, f"{target} = {brackets % element}\n")])
    listed = find_assignment(text, name, target)
    if not isinstance(listed, ast.Tuple | ast.Dict):
        raise unrecognized(name, target)
    items = listed.elts if isinstance(listed, ast.Tuple) else listed.values
    if not items:
        return insert(text, listed.lineno, listed.col_offset + 1, f"{element},")
    last = items[-1]
    return insert(text, last.end_lineno or 0, last.end_col_offset or 0, f", {element}")


def _add_texts(text: str, name: str, names: Names, field: Field) -> str:
    table = re.search(rf"(?m)^\[{names.plural}\]\n(?:.+\n)*", text)
    if table is None:
        raise unrecognized(name, f"the table [{names.plural}]")
    known = set(tomllib.loads(table[0])[names.plural])
    added = [line for line in render_field_texts(names, field) if line.partition(" = ")[0] not in known]
    return text[: table.end()] + "".join(f"{line}\n" for line in added) + text[table.end() :]
