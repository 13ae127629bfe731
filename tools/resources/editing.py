"""Enters a resource in the files of a project that list resources, at places that are recognized by their syntax."""

import ast
import re
import tomllib

from resources.build import Resource, build_texts
from resources.errors import RefusedError
from resources.project import Project

# Layers above and below those of the resources.
STANDARD_LAYERS = frozenset(
    {"__main__", "main", "cli", "application", "startup", "features", "weather", "web", "files", "accounts", "outbox"}
)
NOT_FOUND_ROW = re.compile(r"(?m)^\| `[a-z-]+` \| 404 \|.*\n")
CONFLICT_ROW = re.compile(r"(?m)^\| `[a-z-]+` \| 409 \|.*\n")


def enter(project: Project, resource: Resource) -> dict[str, str]:
    """Return the new texts of the changed files by their paths. Raises RefusedError if a place is not recognized."""
    editors = {
        "app/features.py": add_feature,
        "pyproject.toml": add_layer,
        "docs/errors.md": add_codes,
        "tests/test_attacks.py": add_attack_exceptions,
    }
    texts = {name: project.read(name) for name in editors}
    edited = {name: edit(texts[name], resource) for name, edit in editors.items()}
    return {name: text for name, text in edited.items() if text != texts[name]}


def enter_pages(project: Project, resource: Resource) -> dict[str, str]:
    """Return the new texts of the files that list pages and their texts, by their paths. Raises RefusedError."""
    plural = resource.names.plural
    name = "app/web/feature.py"
    listed = find_assignment(project.read(name), name, "PAGE_GROUPS")
    if not isinstance(listed, ast.Tuple | ast.List) or not listed.elts:
        raise unrecognized(name, "the tuple PAGE_GROUPS")
    # The account is the last entry of the menu.
    place = next((each for each in listed.elts if ast.unparse(each).startswith("account.")), listed.elts[-1])
    text = insert(project.read(name), place.lineno, place.col_offset, f"{plural}, ")
    locales = sorted((project.path / "app/web/locales").glob("*.toml"))
    texts = {f"app/web/locales/{each.name}": each.read_text(encoding="utf-8") for each in locales}
    edited = {locale: _add_texts(locale, before, resource) for locale, before in texts.items()}
    return {name: f"from app.web.{plural}.router import page_group as {plural}\n{text}", **edited}


def _add_texts(name: str, text: str, resource: Resource) -> str:
    """Add the texts in English, also to other languages, and the messages after the others."""
    n = resource.names
    table, flash = f"{build_texts(resource)}\n", re.search(r"(?m)^\[flash\]\n(?:.+\n)*", text)
    if flash is None:
        raise unrecognized(name, "the table [flash]")
    if resource.scope != "admin":
        words = (("added", "added"), ("changed", "saved"), ("deleted", "deleted"))
        rows = "".join(f'{n.singular}_{key} = "{n.title} {word}."\n' for key, word in words)
        text = text[: flash.end()] + rows + text[flash.end() :]
    before = re.search(r"(?m)^\[(error|flash)\]\n", text)
    at = before.start() if before else 0
    return text[:at] + table + text[at:]


def unrecognized(name: str, place: str) -> RefusedError:
    return RefusedError(
        f"{name} has been changed so that {place} is not recognized: restore this place to its form in the template,"
        " and repeat the command."
    )


def insert(text: str, line: int, column: int, added: str) -> str:
    """Insert before a position of the syntax tree, whose columns count bytes."""
    lines = text.splitlines(keepends=True)
    encoded = lines[line - 1].encode()
    lines[line - 1] = encoded[:column].decode() + added + encoded[column:].decode()
    return "".join(lines)


def find_assignment(text: str, name: str, target: str) -> ast.expr:
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if [ast.unparse(each) for each in targets] == [target]:
                return node.value
    raise unrecognized(name, f"the assignment to {target}")


def add_feature(text: str, resource: Resource) -> str:
    """Add the feature before those of the pages and the weather, which may use it."""
    plural = resource.names.plural
    listed = find_assignment(text, "app/features.py", "FEATURES")
    if not isinstance(listed, ast.Tuple | ast.List) or not listed.elts:
        raise unrecognized("app/features.py", "the tuple FEATURES")
    names = [ast.unparse(each) for each in listed.elts]
    last = next((at for at, name in enumerate(names) if name in {"weather", "web"}), None)
    if last is None:
        after = listed.elts[-1]
        assert after.end_lineno is not None and after.end_col_offset is not None  # noqa: S101, PT018  # for the type checker: `parse` sets both
        edited = insert(text, after.end_lineno, after.end_col_offset, f", {plural}")
    else:
        edited = insert(text, listed.elts[last].lineno, listed.elts[last].col_offset, f"{plural}, ")
    return f"from app.{plural}.feature import feature as {plural}\n{edited}"


def add_layer(text: str, resource: Resource) -> str:
    """Add the package to the import contract: beside the other features, or above those that it refers to."""
    layers = find_layers(text)
    referred = {reference.package.partition("/")[0] for reference in resource.referred if not reference.is_user}
    members = [layer_members(line) for line in layers]
    plural = resource.names.plural
    if referred:
        highest = min((at for at, found in enumerate(members) if found & referred), default=None)
        if highest is None:
            raise unrecognized("pyproject.toml", f"the layer of {', '.join(sorted(referred))}")
        above = members[highest - 1]
        if above & STANDARD_LAYERS:
            return text.replace(layers[highest - 1], f'{layers[highest - 1]}    "{plural}",\n', 1)
        beside = layers[highest - 1]
    else:
        beside = next((line for line, found in zip(layers, members, strict=True) if "health" in found), "")
        if not beside:
            raise unrecognized("pyproject.toml", "the layer with health in the contract of app")
    head, _, rest = beside.rpartition('"')
    return text.replace(beside, f'{head} | {plural}"{rest}', 1)


def find_layers(text: str) -> list[str]:
    """Return the lines of the layers of app, each with its line break."""
    contract = re.search(r'(?m)^containers = \["app"\]\nlayers = \[\n((?:.*\n)*?)\]\n', text)
    lines = contract[1].splitlines(keepends=True) if contract else []
    layers = [line for line in lines if not line.lstrip().startswith("#")]
    if not layers or not all(re.fullmatch(r'    "[^"]+",\n', line) and text.count(line) == 1 for line in layers):
        raise unrecognized("pyproject.toml", "the list of layers of the contract for app")
    tomllib.loads(text)
    return layers


def layer_members(line: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", line))


def add_codes(text: str, resource: Resource) -> str:
    n = resource.names
    others = ", or it belongs to another account" if resource.scope == "owner" else ""
    row = f"| `{n.code}-not-found` | 404 | There is no such {n.words}{others}. | Reload the list. |\n"
    text = insert_row(text, NOT_FOUND_ROW, row)
    for field in resource.uniques:
        code = f"{n.code}-{field.typed.replace('_', '-')}-taken"
        row = f"| `{code}` | 409 | Another {n.words} has this {field.words}. | Ask for another value. |\n"
        text = insert_row(text, CONFLICT_ROW, row)
    return text


def insert_row(text: str, pattern: re.Pattern[str], row: str) -> str:
    rows = list(pattern.finditer(text))
    if not rows:
        raise unrecognized("docs/errors.md", "the table of the codes")
    return text[: rows[-1].end()] + row + text[rows[-1].end() :]


def add_attack_exceptions(text: str, resource: Resource) -> str:
    """Name the routes that other users may use as well, and what fields with other names than the items refer to."""
    n = resource.names
    if resource.scope != "owner":
        methods = ["delete", "get", "patch"] if resource.scope == "shared" else ["get"]
        entries = [f'("{method}", "/api/v1{n.path}/{{{n.singular}_id}}")' for method in methods]
        text = _add_entries(text, "CHECKED_ELSEWHERE", entries)
    renamed = [
        f'"{field.name}": "/api/v1{field.reference.names.path}"'
        for field in resource.references
        if field.required and field.reference and field.typed != field.reference.names.singular
    ]
    return _add_entries(text, "REFERENCES", renamed) if renamed else text


def _add_entries(text: str, target: str, entries: list[str]) -> str:
    value = find_assignment(text, "tests/test_attacks.py", target)
    is_call = isinstance(value, ast.Call) and ast.unparse(value) == "set()"
    if not isinstance(value, ast.Set | ast.Dict) and not is_call:
        raise unrecognized("tests/test_attacks.py", target)
    assert value.end_lineno is not None and value.end_col_offset is not None  # noqa: S101, PT018  # for the type checker: `parse` sets both
    added = ", ".join(entries)
    if is_call:
        start = insert(text, value.end_lineno, value.end_col_offset, f"{{{added}}}")
        return start.replace("set(){", "{", 1)
    return insert(text, value.lineno, value.col_offset + 1, f"{added}, ")
