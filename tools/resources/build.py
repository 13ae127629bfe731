"""Renders the files of a resource from its name, its fields and its scope."""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from resources.fields import Field, Reference, Scope
from resources.names import Names

TEMPLATES = Path(__file__).with_name("templates")
PAGE_DELIMITERS = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
}
MODULES = ("models", "schemas", "dependencies", "service", "router", "feature")


@dataclass(frozen=True)
class Resource:
    names: Names
    scope: Scope
    fields: tuple[Field, ...]
    # For pages: the attribute that names a referred row, by the name of the field.
    labels: Mapping[str, str] = dataclass_field(default_factory=dict)

    @property
    def shown(self) -> list[Field]:
        """The fields that forms have: not those of JSON, and not references to what cannot be listed."""
        return [
            each for each in self.fields if each.kind != "json" and (each.kind != "ref" or each.name in self.labels)
        ]

    @property
    def choices(self) -> list[Field]:
        return [each for each in self.shown if each.kind == "ref"]

    @property
    def label(self) -> str:
        """The attribute that names a row."""
        return next((each.name for each in self.fields if each.kind == "str" and not each.optional), "id")

    @property
    def missing_in_forms(self) -> list[Field]:
        """Required fields that forms cannot have, so that there can be no pages."""
        return [each for each in self.fields if each.required and each not in self.shown]

    @property
    def references(self) -> list[Field]:
        return [field for field in self.fields if field.kind == "ref"]

    @property
    def uniques(self) -> list[Field]:
        return [field for field in self.fields if field.unique]

    @property
    def referred(self) -> list[Reference]:
        """The other resources and the accounts that the resource refers to, each once."""
        others = [field.reference for field in self.references if not field.is_self_reference]
        return list(dict.fromkeys(reference for reference in others if reference is not None))


def build(resource: Resource) -> dict[str, str]:
    """Return the new files by their paths; their imports and layout still have to be put in order."""
    plural = resource.names.plural
    files = {f"app/{plural}/{module}.py": _render(f"{module}.py", resource) for module in MODULES}
    files |= {f"app/{plural}/__init__.py": "", f"tests/{plural}/__init__.py": ""}
    return files | {f"tests/{plural}/test_{plural}.py": _render("test.py", resource)}


def build_pages(resource: Resource) -> dict[str, str]:
    """Return the files of the pages by their paths."""
    plural = resource.names.plural
    folder = f"app/web/{plural}"
    files = {f"{folder}/__init__.py": "", f"{folder}/router.py": _render("pages_router.py", resource)}
    files[f"{folder}/templates/list.html"] = _render("pages_list.html", resource)
    if resource.scope != "admin":
        files[f"{folder}/templates/edit.html"] = _render("pages_edit.html", resource)
    return files | {f"tests/web/test_{plural}.py": _render("pages_test.py", resource)}


def build_texts(resource: Resource) -> str:
    """Return the table of the texts of the pages, in TOML."""
    return _render("pages_texts.toml", resource)


def render_field_tests(names: Names, field: Field, scope: Scope, maker: str, through: str) -> str:
    """Return the tests of a field that is added to a resource; `maker(through, user)` creates a row."""
    template = _environment().get_template("test_field.py.jinja")
    return template.render(n=names, field=field, scope=scope, maker=maker, through=through)


def render_macro(names: Names, field: Field) -> str:
    """Return the call of a macro of app/web/templates/forms.html of a project."""
    label = f't("{names.plural}.label_{field.name}")'
    required = ", required=false" if field.optional else ""
    if field.kind == "text":
        return f'text_area("{field.name}", {label})'
    texts = {"bool": [("true", "yes"), ("false", "no")]}.get(
        field.kind, [(choice, f"choice_{field.name}_{member.lower()}") for member, choice in field.members]
    )
    if texts:
        options = ", ".join(f'("{value}", t("{names.plural}.{text}"))' for value, text in texts)
        return f'choice("{field.name}", {label}, [{options}]{required})'
    if field.kind == "ref":
        return f'choice("{field.name}", {label}, options.{field.name}{required})'
    more = {
        "str": f", maxlength={field.length}",
        "int": ', type="number"',
        "decimal": ', inputmode="decimal"',
        "date": ', type="date"',
        "datetime": f', hint=t("{names.plural}.time_hint")',
    }.get(field.kind, "")
    return f'field("{field.name}", {label}{required}{more})'


def render_field_texts(names: Names, field: Field) -> list[str]:
    """Return the lines of the texts of a field, in TOML."""
    resource = Resource(names, "owner", (field,))
    common = {line for line in build_texts(Resource(names, "owner", ())).splitlines()}
    return [line for line in build_texts(resource).splitlines() if line not in common]


def _environment(**delimiters: str) -> Environment:
    return Environment(
        **delimiters,  # type: ignore[arg-type]  # Jinja types each delimiter by itself: all of them are texts
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  # the templates are of Python, and field names cannot contain markup
    )


def _render(template: str, resource: Resource) -> str:
    # The templates of pages are themselves templates of Jinja.
    environment = _environment(**PAGE_DELIMITERS if template.endswith(".html") else {})

    def getter(field: Field) -> str:
        reference = field.reference
        assert reference is not None  # noqa: S101  # for the type checker: see Project.resolve
        module = "" if field.is_self_reference or reference.is_user else f"{reference.package}_service."
        return f"{module}get_{reference.names.singular}"

    def made(field: Field, user: str = "user") -> str:
        """Return an expression of the tests that creates a row for the field to refer to, and returns its id."""
        assert field.reference is not None  # noqa: S101  # for the type checker: see Project.resolve
        if field.reference.is_user:
            return f"{user}.id"
        through = "target" if any(not each.is_user for each in resource.referred) else "client"
        create = f"create_{field.reference.names.singular}({through}, {user})"
        return f'(await {create})["id"]' if field.is_self_reference else f"await {create}"

    def numbered(variable: str, besides: Field | None = None) -> str:
        """Return arguments that give each unique field a different value."""
        fields = [each for each in resource.uniques if each.kind != "ref" and each != besides]
        return "".join(f", {each.name}={each.numbered(variable)}" for each in fields)

    environment.filters |= {"getter": getter, "made": made, "macro": partial(render_macro, resource.names)}
    return environment.get_template(f"{template}.jinja").render(
        n=resource.names,
        scope=resource.scope,
        fields=resource.fields,
        references=resource.references,
        uniques=resource.uniques,
        referred=resource.referred,
        numbered=numbered,
        shown=resource.shown,
        choices=resource.choices,
        label=resource.label,
        labels={
            name: f"str(each.{label})" if label == "id" else f"each.{label}" for name, label in resource.labels.items()
        },
    )
