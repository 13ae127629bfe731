"""Takes a resource out of a project: its folders, and its entries in the files that list resources."""

import ast
import re
from collections.abc import Callable, Sequence

from resources.editing import find_assignment, find_layers, unrecognized
from resources.errors import RefusedError
from resources.names import Names
from resources.project import Project

Span = tuple[tuple[int, int], tuple[int, int]]
LISTS = {"app/features.py": "FEATURES", "app/web/feature.py": "PAGE_GROUPS"}
ATTACKS = "tests/test_attacks.py"


def list_paths(project: Project, names: Names) -> list[str]:
    """List the files and folders that only this resource has."""
    plural = names.plural
    paths = (f"app/{plural}", f"tests/{plural}", f"app/web/{plural}", f"tests/web/test_{plural}.py")
    return [path for path in paths if (project.path / path).exists()]


def refuse_references(project: Project, names: Names) -> None:
    """Raise RefusedError if other code uses the resource."""
    own = [f"{path}/" for path in list_paths(project, names)] + [f"tests/web/test_{names.plural}.py"]
    modules = [f"app.{names.plural}", f"app.web.{names.plural}", f"tests.{names.plural}"]
    users = []
    for path in [*project.list_modules("app"), *project.list_modules("tests"), *project.list_modules("scripts")]:
        if path in LISTS or path.startswith(tuple(own)):
            continue
        imports = _list_imports(project.parse(path))
        is_imported = any(each == module or each.startswith(f"{module}.") for each in imports for module in modules)
        # A foreign key may also name the table as a text.
        is_named = path.endswith("models.py") and re.search(rf"[\"']{names.plural}\.\w+[\"']", project.read(path))
        if is_imported or is_named:
            users.append(path)
    if users:
        raise RefusedError(
            f"{', '.join(users)} still {'use' if len(users) > 1 else 'uses'} {names.plural_words}: remove what refers"
            " to them first."
        )


def _list_imports(module: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
    return found


def take_out(project: Project, names: Names) -> dict[str, str]:
    """Return the new texts of the changed files by their paths. Raises RefusedError if a place is not recognized."""
    editors: dict[str, Callable[[str], str]] = {
        "app/features.py": lambda text: _remove_from_list(text, "app/features.py", names),
        "pyproject.toml": lambda text: _remove_layer(text, names),
        "docs/errors.md": lambda text: _remove_codes(project, text, names),
        ATTACKS: lambda text: _remove_attack_entries(project, text, names),
    }
    if project.has_pages:
        editors["app/web/feature.py"] = lambda text: _remove_from_list(text, "app/web/feature.py", names)
        locales = sorted((project.path / "app/web/locales").glob("*.toml"))
        editors |= {f"app/web/locales/{path.name}": lambda text: _remove_texts(text, names) for path in locales}
    texts = {name: project.read(name) for name in editors}
    edited = {name: edit(texts[name]) for name, edit in editors.items()}
    return {name: text for name, text in edited.items() if text != texts[name]}


def _remove_from_list(text: str, name: str, names: Names) -> str:
    """Remove the import of the feature or of its pages, and its entry in the list."""
    package = f"app.web.{names.plural}" if name == "app/web/feature.py" else f"app.{names.plural}"
    imports = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.ImportFrom) and (node.module == package or f"{node.module}.".startswith(f"{package}."))
    ]
    if not imports and name == "app/web/feature.py":
        return text
    listed = find_assignment(text, name, LISTS[name])
    called = {alias.asname or alias.name for node in imports for alias in node.names}
    if not isinstance(listed, ast.Tuple | ast.List) or not called:
        raise unrecognized(name, f"the import of {package}, or the tuple {LISTS[name]},")
    chosen = [at for at, each in enumerate(listed.elts) if ast.unparse(each).partition(".")[0] in called]
    spans = [_element_span(listed.elts, at) for at in chosen]
    spans += [((node.lineno, 0), ((node.end_lineno or node.lineno) + 1, 0)) for node in imports]
    return _cut(text, spans)


def _element_span(elements: Sequence[ast.expr], at: int) -> Span:
    """Return the place of an element together with its comma."""
    element = elements[at]
    if at + 1 < len(elements):
        return _start(element), _start(elements[at + 1])
    return (_end(elements[at - 1]), _end(element)) if at else (_start(element), _end(element))


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or node.lineno, node.end_col_offset or node.col_offset


def _cut(text: str, spans: list[Span]) -> str:
    """Remove the text of the spans, whose columns count bytes."""
    encoded = text.encode()
    starts = [0]
    for line in encoded.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for first, last in sorted(spans, reverse=True):
        encoded = encoded[: starts[first[0] - 1] + first[1]] + encoded[starts[last[0] - 1] + last[1] :]
    return encoded.decode()


def _remove_layer(text: str, names: Names) -> str:
    for line in find_layers(text):
        members = line.strip().strip('",').split(" | ")
        kept = [each for each in members if each.strip("()") != names.plural]
        if len(kept) < len(members):
            return text.replace(line, f'    "{" | ".join(kept)}",\n' if kept else "", 1)
    raise unrecognized("pyproject.toml", f"the layer of {names.plural}")


def _remove_codes(project: Project, text: str, names: Names) -> str:
    """Remove the error codes that only this resource uses."""
    own = f"app/{names.plural}/"
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for path in project.list_modules("app"):
        is_own = path.startswith((own, f"app/web/{names.plural}/"))
        used[is_own] |= set(re.findall(r"\bcode=\"([a-z-]+)\"", project.read(path)))
    codes = used[True] - used[False]
    return "".join(
        line for line in text.splitlines(keepends=True) if not any(line.startswith(f"| `{code}` |") for code in codes)
    )


def _remove_attack_entries(project: Project, text: str, names: Names) -> str:
    """Remove the routes of the resource, and the names of fields that only this resource has."""
    fields = {each: _list_fields(project, each) for each in project.list_modules("app") if each.endswith("schemas.py")}
    own = fields.pop(f"app/{names.plural}/schemas.py", set())
    others = set().union(*fields.values())
    paths = re.compile(rf"/api/v1{re.escape(names.path)}(/.*)?")
    spans: list[Span] = []
    for target in ("BODIES", "REFERENCES", "CHECKED_ELSEWHERE"):
        listed = find_assignment(text, ATTACKS, target)
        elements: Sequence[ast.expr] = listed.elts if isinstance(listed, ast.Set) else []
        ends = elements
        if isinstance(listed, ast.Dict):
            elements, ends = [key for key in listed.keys if key is not None], listed.values
        for at, element in enumerate(elements):
            texts = [each.value for each in ast.walk(element) if isinstance(each, ast.Constant)]
            is_own = any(isinstance(each, str) and paths.fullmatch(each) for each in texts)
            if is_own or (target == "REFERENCES" and texts[0] in own - others):
                end = _start(elements[at + 1]) if at + 1 < len(elements) else _end(ends[at])
                spans.append((_start(element), end))
    return _close_gaps(_cut(text, spans))


def _close_gaps(text: str) -> str:
    """Remove the comma after a last entry that was removed, and keep an empty set a set."""
    text = re.sub(r"(?m)^\s*,\n(?=[}])", "", text)
    text = re.sub(r"\{\s*,?\s*\}", "{}", text)
    return re.sub(r"(?m)^(CHECKED_ELSEWHERE.* = )\{\}", r"\1set()", text)


def _list_fields(project: Project, path: str) -> set[str]:
    return {ast.unparse(node.target) for node in ast.walk(project.parse(path)) if isinstance(node, ast.AnnAssign)}


def _remove_texts(text: str, names: Names) -> str:
    text = re.sub(rf"(?ms)^\[{names.plural}\]\n.*?(?=^\[|\Z)", "", text)
    return re.sub(rf"(?m)^{names.singular}_(added|changed|deleted) = .*\n", "", text)


def list_mentions(project: Project, names: Names) -> list[str]:
    """List the documents that may still speak of the resource."""
    documents = [project.path / "README.md", *sorted((project.path / "docs").glob("*.md"))]
    # Not the singular, which is often an ordinary word.
    word = re.compile(rf"\b({re.escape(names.plural)}|{re.escape(names.plural_words)})\b")
    return [
        path.relative_to(project.path).as_posix()
        for path in documents
        if path.exists() and word.search(path.read_text(encoding="utf-8"))
    ]
