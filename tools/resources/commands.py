"""The commands: they read their values from the environment, or from arguments of the form NAME=value."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from resources import editing, removing
from resources.build import Resource, build, build_pages
from resources.errors import RefusedError
from resources.extending import check_addable, extend
from resources.fields import GRAMMAR, Field, Scope, parse_field, parse_fields, split_fields
from resources.names import parse_name
from resources.project import Project
from resources.writing import prepare

Values = Mapping[str, str]
# Of the environment variables, which the Makefile of a project sets.
PREFIX = "ARG_"


def main(command: Callable[[Project, Values], str], *known: str) -> None:
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--template", type=Path, help="the clone of the template; not needed")
    parser.add_argument("--project", type=Path, default=Path(), help="the folder of the project")
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE", help=f"one of {', '.join(known)}")
    options = parser.parse_args()
    given = dict(each.split("=", 1) if "=" in each else (each, "") for each in options.values)
    if unknown := given.keys() - {*known}:
        sys.exit(f"{', '.join(sorted(unknown))}: not a value of this command, which takes {', '.join(known)}.")
    values = {name: given.get(name, os.environ.get(f"{PREFIX}{name}", "")).strip() for name in known}
    try:
        print(command(Project(options.project.resolve()), values))
    except RefusedError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted. Nothing was changed.")


def add_resource(project: Project, values: Values) -> str:
    names = parse_name(values["NAME"])
    scope = _read_scope(values)
    fields = parse_fields(names, values["FIELDS"])
    project.refuse_existing(names)
    fields = [
        replace(field, reference=project.resolve(field, scope)) if field.kind == "ref" else field for field in fields
    ]
    labels = {
        field.name: label
        for field in fields
        if project.has_pages and field.reference and (label := find_label(project, fields, field))
    }
    resource = Resource(names, scope, tuple(fields), labels)
    has_pages = project.has_pages and not resource.missing_in_forms
    files = build(resource) | editing.enter(project, resource)
    if has_pages:
        files |= build_pages(resource) | editing.enter_pages(project, resource)
    with prepare(project.path) as copy:
        copy.write(files)
        copy.tidy(files)
        copy.migrate(f"Add {names.plural_words}")
    done = f"Added {names.plural_words}. Read what is new (git status), then run: make check test"
    if project.has_pages and not has_pages:
        missing = ", ".join(field.name for field in resource.missing_in_forms)
        done += f"\nIt has no pages, because forms cannot have the required fields {missing}."
    return done


def find_label(project: Project, fields: list[Field], field: Field) -> str | None:
    """Return the attribute that names the rows that a field refers to, or None if forms cannot list them."""
    if field.is_self_reference:
        return next((each.name for each in fields if each.annotation == "str"), "id")
    return project.find_label(field.reference) if field.reference else None


def _read_scope(values: Values) -> Scope:
    chosen: list[Scope] = []
    for name, scope in (("SHARED", "shared"), ("ADMIN", "admin")):
        if values[name] not in {"", "0", "1"}:
            raise RefusedError(f"{name} is {values[name]}: set it to 1, or leave it out.")
        if values[name] == "1":
            chosen.append("shared" if scope == "shared" else "admin")
    if len(chosen) > 1:
        raise RefusedError("SHARED and ADMIN exclude each other: with ADMIN, everybody reads the rows already.")
    return chosen[0] if chosen else "owner"


def add_field(project: Project, values: Values) -> str:
    names = project.find_resource(values["RESOURCE"])
    tokens = split_fields(values["FIELD"])
    if len(tokens) != 1:
        raise RefusedError(f"Give one field, such as FIELD='priority:int=0'. Form: {GRAMMAR}")
    field = parse_field(names, tokens[0])
    check_addable(field)
    files = extend(project, names, field)
    with prepare(project.path) as copy:
        copy.write(files)
        copy.tidy(files)
        copy.migrate(f"Add {field.name} to {names.plural_words}")
    return f"Added {field.name} to {names.plural_words}. Read what is new (git diff), then run: make check test"


def remove_resource(project: Project, values: Values) -> str:
    names = project.find_resource(values["RESOURCE"])
    removing.refuse_references(project, names)
    paths = removing.list_paths(project, names)
    files = removing.take_out(project, names)
    with prepare(project.path) as copy:
        for path in paths:
            copy.remove(path)
        copy.write(files)
        copy.tidy(files)
        copy.migrate(f"Remove {names.plural_words}")
        mentions = removing.list_mentions(Project(copy.path), names)
    done = f"Removed {names.plural_words}. The migration deletes their rows: read it, then run: make check test"
    if not mentions:
        return done
    return f"{done}\nDelete what these documents say about {names.plural_words}: {', '.join(mentions)}"
