"""Renders the files of a resource from its name, its fields and its scope."""

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from resources.fields import Field, Reference, Scope
from resources.names import Names

TEMPLATES = Path(__file__).with_name("templates")
MODULES = ("models", "schemas", "dependencies", "service", "router", "feature")


@dataclass(frozen=True)
class Resource:
    names: Names
    scope: Scope
    fields: tuple[Field, ...]

    @property
    def references(self) -> list[Field]:
        return [field for field in self.fields if field.kind == "ref"]

    @property
    def uniques(self) -> list[Field]:
        return [field for field in self.fields if field.unique]

    @property
    def referred(self) -> list[Reference]:
        """What the resource refers to, apart from itself, each once."""
        others = [field.reference for field in self.references if not field.is_self_reference]
        return list(dict.fromkeys(reference for reference in others if reference is not None))


def build(resource: Resource) -> dict[str, str]:
    """Return the new files by their paths; their imports and layout still have to be put in order."""
    plural = resource.names.plural
    files = {f"app/{plural}/{module}.py": _render(f"{module}.py", resource) for module in MODULES}
    files |= {f"app/{plural}/__init__.py": "", f"tests/{plural}/__init__.py": ""}
    return files | {f"tests/{plural}/test_{plural}.py": _render("test.py", resource)}


def render_field_tests(names: Names, field: Field, scope: Scope, maker: str, through: str) -> str:
    """Return the tests of a field that is added to a resource; `maker(through, user)` creates a row."""
    template = _environment().get_template("test_field.py.jinja")
    return template.render(n=names, field=field, scope=scope, maker=maker, through=through)


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  # the templates are of Python, and field names cannot contain markup
    )


def _render(template: str, resource: Resource) -> str:
    environment = _environment()

    def getter(field: Field) -> str:
        reference = field.reference
        assert reference is not None  # noqa: S101  # for the type checker: see Project.resolve
        module = "" if field.is_self_reference or reference.is_user else f"{reference.package}_service."
        return f"{module}get_{reference.names.singular}"

    def made(field: Field, user: str = "user") -> str:
        """Return an expression of the tests that creates a row for the field to refer to, and returns its id."""
        assert field.reference is not None  # noqa: S101  # as above
        if field.reference.is_user:
            return f"{user}.id"
        through = "target" if any(not each.is_user for each in resource.referred) else "client"
        create = f"create_{field.reference.names.singular}({through}, {user})"
        return f'(await {create})["id"]' if field.is_self_reference else f"await {create}"

    def numbered(variable: str, besides: Field | None = None) -> str:
        """Return arguments that give each unique field a value of its own."""
        fields = [each for each in resource.uniques if each.kind != "ref" and each != besides]
        return "".join(f", {each.name}={each.numbered(variable)}" for each in fields)

    environment.filters |= {"getter": getter, "made": made}
    return environment.get_template(f"{template}.jinja").render(
        n=resource.names,
        scope=resource.scope,
        fields=resource.fields,
        references=resource.references,
        uniques=resource.uniques,
        referred=resource.referred,
        numbered=numbered,
    )
