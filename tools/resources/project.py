"""The contents of a project, read from its source code without importing it."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from resources.errors import RefusedError
from resources.fields import Field, Reference, Scope
from resources.names import NAME, Names, pluralize

USERS = Reference(Names("user"), "accounts", "User", None)
SESSION = "session"
# Features that the others need.
STANDARD = frozenset({"accounts", "audit", "core", "files", "health", "outbox", "web"})


@dataclass(frozen=True)
class Table:
    name: str
    # The folder in app/, and the class in its models.py.
    package: str
    cls: str


@dataclass(frozen=True)
class Project:
    path: Path

    @property
    def has_pages(self) -> bool:
        return (self.path / "app" / "web").is_dir()

    def read(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except OSError as error:
            raise RefusedError(f"{name} cannot be read ({error.strerror}): this command needs this file.") from error

    def parse(self, name: str) -> ast.Module:
        try:
            return ast.parse(self.read(name))
        except SyntaxError as error:
            raise RefusedError(f"{name} is not valid Python (line {error.lineno}): correct it first.") from error

    def list_tables(self) -> list[Table]:
        files = sorted((self.path / "app").rglob("models.py"))
        return [table for file in files for table in self._find_tables(file)]

    def _find_tables(self, file: Path) -> Iterator[Table]:
        name = file.relative_to(self.path).as_posix()
        for node in self.parse(name).body:
            for statement in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(node, ast.ClassDef) and (table := _table_name(statement)):
                    yield Table(table, file.parent.relative_to(self.path / "app").as_posix(), node.name)

    def find_resource(self, text: str) -> Names:
        """Return the names of an existing resource, given in the singular or in the plural. Raises RefusedError."""
        name = text.strip()
        if not NAME.fullmatch(name):
            raise RefusedError(f"{name or 'Nothing'} is not the name of a resource: give one, such as RESOURCE=note.")
        for table in self.list_tables():
            names = Names(_singular(table))
            if name in {names.singular, names.plural} and table.package == table.name == names.plural:
                if table.package in STANDARD:
                    raise RefusedError(f"{table.package} is a part of the service, and not a resource.")
                return names
        raise RefusedError(
            f"There is no resource {name}: no app/{pluralize(name)}/models.py has the table {pluralize(name)}."
        )

    def find_scope(self, names: Names) -> Scope:
        table = Table(names.plural, names.plural, names.cls)
        getter = self.find_function(f"app/{names.plural}/service.py", f"get_{names.singular}")
        if getter is not None and "owner_id" in [each.arg for each in getter.args.args]:
            return "owner"
        return self._find_shared_scope(table, names)

    def find_label(self, reference: Reference) -> str | None:
        """Return the attribute that names a row, or None if pages cannot list the rows."""
        if reference.is_user:
            return None
        arguments = ["session", *(["owner_id"] if reference.owned else []), "page"]
        found = self.find_function(f"app/{reference.package}/service.py", f"list_{reference.names.plural}")
        if found is None or [each.arg for each in found.args.args] != arguments or found.args.kwonlyargs:
            return None
        for node in self.parse(f"app/{reference.package}/models.py").body:
            if isinstance(node, ast.ClassDef) and node.name == f"{reference.cls}Record":
                fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
                texts = [ast.unparse(each.target) for each in fields if ast.unparse(each.annotation) == "str"]
                return texts[0] if texts else "id"
        return None

    def list_modules(self, folder: str) -> list[str]:
        paths = (self.path / folder).rglob("*.py")
        return sorted(path.relative_to(self.path).as_posix() for path in paths if "__pycache__" not in path.parts)

    def refuse_existing(self, names: Names) -> None:
        """Raise RefusedError if the project already has something with a name of the new resource."""
        for folder in ("app", "tests", *(["app/web"] if self.has_pages else [])):
            for name in {names.plural, f"{names.plural}.py", names.singular}:
                if (self.path / folder / name).exists():
                    raise RefusedError(f"{folder}/{name} already exists: choose another name, or remove it first.")
        for table in self.list_tables():
            if table.name == names.plural or table.cls == names.cls:
                raise RefusedError(
                    f"app/{table.package}/models.py already has the table {table.name} ({table.cls}): choose another"
                    " name."
                )

    def resolve(self, field: Field, scope: Scope) -> Reference:
        """Return what a field of a resource refers to. Raises RefusedError."""
        if field.target == "users":
            return USERS
        if field.is_self_reference:
            if not field.optional:
                raise RefusedError(
                    f"{field.typed}: a reference to the same resource must be optional, because the first row has"
                    f" nothing to refer to: {field.typed}:ref({field.target})?"
                )
            return Reference(field.resource, field.resource.plural, field.resource.cls, scope)
        table = next((each for each in self.list_tables() if each.name == field.target), None)
        if table is None:
            raise RefusedError(
                f"{field.typed} refers to {field.target}, but no model in app/ has this table: create the resource"
                " first, or correct the name."
            )
        reference = self._find_reference(field, table)
        if reference.owned and scope != "owner":
            raise RefusedError(
                f"{field.typed}: each row of {field.target} belongs to one account, so rows that several accounts use"
                " cannot refer to it."
            )
        return reference

    def _find_reference(self, field: Field, table: Table) -> Reference:
        names = Names(_singular(table))
        module = f"app/{table.package}/service.py"
        path = self.path / module
        found = self.find_function(module, f"get_{names.singular}") if path.exists() else None
        arguments = [each.arg for each in found.args.args] if found else []
        if pluralize(names.singular) == table.name:
            if arguments == [SESSION, "owner_id", f"{names.singular}_id"]:
                return Reference(names, table.package, table.cls, "owner")
            if arguments == [SESSION, f"{names.singular}_id"]:
                return Reference(names, table.package, table.cls, self._find_shared_scope(table, names))
        raise RefusedError(
            f"{field.typed} cannot refer to {table.name}: {module} has no function get_{names.singular}(session,"
            f" owner_id, {names.singular}_id) or get_{names.singular}(session, {names.singular}_id)."
        )

    def _find_shared_scope(self, table: Table, names: Names) -> Scope:
        router = self.find_function(f"app/{table.package}/router.py", f"create_{names.singular}")
        return "admin" if router and "AdminUser" in ast.unparse(router.args) else "shared"

    def find_function(self, module: str, name: str) -> ast.AsyncFunctionDef | ast.FunctionDef | None:
        for node in self.parse(module).body:
            if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef) and node.name == name:
                return node
        return None


def _table_name(statement: ast.stmt) -> str | None:
    if (
        isinstance(statement, ast.Assign)
        and [ast.unparse(target) for target in statement.targets] == ["__tablename__"]
        and isinstance(statement.value, ast.Constant)
    ):
        return str(statement.value.value)
    return None


def _singular(table: Table) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", table.cls).lower()
