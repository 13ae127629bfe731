"""The prose of the template and of the service uses standard terms: phrases of a private idiom are rejected."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.template import ROOT, list_files

# Each pattern, searched without regard to case, with the words to use instead.
IDIOMS = {
    r"\b(for|to|of|by|from|with) who\b": "the noun: for clients that, of the user who",
    r"\b(for|to|of|by|from|with) whoever\b": "the noun: by anyone who",
    r", whoever (asks|has|made|holds|is)\b": "regardless of the caller, for every client",
    r"^what\b(?!.*\?)": "the noun: Expired rows, Warnings about, The columns that",
    r"^(of|for) (its|their) own\b": "the noun, then the reason: A CTE, because",
    r"^not above\b": "Imported lazily: only X needs Y.",
    r"\banew\b": "again",
    r"\bfor ever\b": "forever, permanently, without a limit",
    r"\bso (many|much)\b(?! (that|as)\b)": "the number: N rows, this many",
    r"\bthereby\b": "so, which",
    r"\bsurer\b": "safer, more reliable",
    r"\balike\b": "both, the same",
    r"\band the like\b": "and such as, or the list",
    r"\bshall\b": "must, should, will",
    r", too[.:;]": "also, before the verb",
    r"\btells? of\b": "describes, logs, reveals",
    r"\bas yet\b": "yet, still",
    r"\bwithout a word\b": "silently, without details",
    r"\bmade good\b": "completed, repaired",
    r"\b(takes?|taken) (it|them) for\b": "mistakes it for, treats it as",
    r"\bhands? (it|them) over\b": "passes",
}
HASH_COMMENT = re.compile(r"(?:^|\s)[#;]\s(.*)")
WITH_HASH_COMMENTS = {
    *("", ".cfg", ".conf", ".ini", ".sh", ".template", ".toml", ".yaml", ".yml"),
    *(".service", ".socket", ".target", ".timer"),
}
TEXT_FOLDERS = {"email", "emails", "locales", "mails"}
BINARY = {".png", ".ico", ".woff2"}
NOT_PROSE = {"common_passwords.txt", "uv.lock", "test_words.py"}


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the comments, docstrings and texts of a file with their lines; consecutive lines are joined."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        lines = _python_comments(text)
        yield from _python_docstrings(text)
    elif path.suffix == ".md" or not TEXT_FOLDERS.isdisjoint(path.parts):
        lines = list(enumerate(text.splitlines(), start=1))
    elif path.suffix in WITH_HASH_COMMENTS:
        matches = ((number, HASH_COMMENT.search(line)) for number, line in enumerate(text.splitlines(), start=1))
        lines = [(number, match[1]) for number, match in matches if match]
    else:
        lines = []
    yield from _join(lines)


def _python_comments(text: str) -> list[tuple[int, str]]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [
        (token.start[0], token.string.lstrip("# "))
        for token in tokens
        if token.type == tokenize.COMMENT and not token.string.startswith("#%")
    ]


def _python_docstrings(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node)
            if documented is not None:
                start = node.body[0].lineno
                for offset, paragraph in enumerate(documented.split("\n\n")):
                    yield start + offset, " ".join(paragraph.split())


def _join(lines: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Join consecutive lines to paragraphs, so that a phrase may be wrapped."""
    start, last = 0, 0
    words: list[str] = []
    for number, line in lines:
        if words and (number != last + 1 or not line.strip()):
            yield start, " ".join(words)
            words = []
        if line.strip():
            start = start if words else number
            words.append(line.strip())
        last = number
    if words:
        yield start, " ".join(words)


def find_idioms(text: str) -> list[str]:
    return [
        f"{match[0]!r}: write {better}" for idiom, better in IDIOMS.items() for match in re.finditer(idiom, text, re.I)
    ]


def test_prose_uses_standard_terms() -> None:
    paths = (path for path in list_files(".") if path.suffix not in BINARY and path.name not in NOT_PROSE)
    found = [
        f"{path}:{line}: {idiom}" for path in paths for line, text in prose_of(path) for idiom in find_idioms(text)
    ]

    assert found == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("module.py", '"""Sessions.\n\nThey end\n anew.\n"""\n'),
        ("module.py", "# They last for\n# ever.\n"),
        ("module.py", "count = 1  # as many, too.\n"),
        ("page.md", "A page for\nwho reads.\n"),
        ("script.sh", "put it  # What nobody needs.\n"),
        ("supervisord.conf", "; Not above: it is slow.\n"),
        ("Dockerfile", "# Builds so many images.\n"),
        ("locales/en.toml", 'text = "This shall be your address."\n'),
    ],
)
def test_idioms_are_found(tmp_path: Path, name: str, content: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(content)

    assert [idiom for _, text in prose_of(file) for idiom in find_idioms(text)] != []


def test_questions_and_strings_are_no_idioms(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text('"""What if a worker dies?"""\n\nNAME = "anew"\n')

    assert [idiom for _, text in prose_of(file) for idiom in find_idioms(text)] == []
