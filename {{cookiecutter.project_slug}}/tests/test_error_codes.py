"""Each refusal of a feature has a stable code, which clients and translations rely on."""

import ast
from collections import defaultdict
from collections.abc import Iterator

import pytest

from app.core import errors
from app.core.errors import AppError
from app.core.project import ROOT

# Without core and web, where the classes of errors define the codes.
FEATURES = [folder for folder in (ROOT / "app").iterdir() if folder.is_dir() and folder.name not in {"core", "web"}]
# Classes that define the code of their errors.
GENERAL = {"InsufficientScopeError", "TooManyRequestsError"}
ERRORS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, AppError) and name not in GENERAL
}


def find_refusals() -> Iterator[tuple[str, str, str | None]]:
    """Yield the place of each refusal, and the source text of its detail and of its code."""
    for folder in FEATURES:
        for path in sorted(folder.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                    codes = [ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "code"]
                    yield f"{path.name}:{node.lineno}", ast.unparse(node.args[0]), codes[0] if codes else None


REFUSALS = list(find_refusals())


def test_refusals_are_found() -> None:
    assert len(REFUSALS) > 20


@pytest.mark.parametrize(("place", "code"), [(place, code) for place, _, code in REFUSALS])
def test_every_refusal_has_a_code(place: str, code: str | None) -> None:
    assert code is not None, place


def test_one_sentence_has_one_code_and_one_code_one_sentence() -> None:
    codes, sentences = defaultdict(set), defaultdict(set)
    for _, detail, code in REFUSALS:
        codes[detail].add(code)
        sentences[code].add(detail)

    assert {detail: found for detail, found in codes.items() if len(found) > 1} == {}
    assert {code: found for code, found in sentences.items() if len(found) > 1} == {}
