"""Follow a document word for word: write its files, change the lines that it names, and run its commands."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# A paragraph and the block of code after it.
BLOCK = re.compile(r"(?ms)^((?:[^\n`][^\n]*\n|`(?!``)[^\n]*\n)*)\n?^```(\w+)\n(.*?)^```$")
EMPTY_FILE = re.compile(r"`([\w/.]+)` is an empty file\.")
WHOLE_FILE = re.compile(r"`([\w/.]+)`(?: is now)?:$")
AFTER_LINE = re.compile(r"In `([\w/.]+)`, after the line `([^`]*)`:$")
AFTER_ROW = re.compile(r"In `([\w/.]+)`, after the row of (`[\w-]+`):$")
IN_PLACE = re.compile(r"In `([\w/.]+)`, in place of the line `([^`]*)`:$")
COMMANDS, ILLUSTRATION = "sh", "py"


@dataclass(frozen=True)
class Step:
    """A block of code in the document, and the paragraph that introduces it."""

    text: str
    language: str
    code: str

    def follow(self, project: Path, run: Callable[[str], object]) -> None:
        for name in EMPTY_FILE.findall(self.text):
            _write(project / name, "")
        if self.language == COMMANDS:
            for command in self.code.splitlines():
                run(command)
        elif self.language != ILLUSTRATION:
            self._change(project)

    def _change(self, project: Path) -> None:
        if match := AFTER_LINE.search(self.text):
            _change_line(project / match[1], match[2], match[2] + "\n" + self.code)
        elif match := IN_PLACE.search(self.text):
            _change_line(project / match[1], match[2], self.code)
        elif match := AFTER_ROW.search(self.text):
            (row,) = re.findall(rf"(?m)^\| {match[2]} \|.*$", (project / match[1]).read_text(encoding="utf-8"))
            _change_line(project / match[1], row, row + "\n" + self.code)
        else:
            match = WHOLE_FILE.search(self.text)
            assert match, f"The document does not say what this is for: {self}"
            _write(project / match[1], self.code)


def read_steps(document: str) -> Iterator[Step]:
    for text, language, code in BLOCK.findall(document):
        # A line may break anywhere in a paragraph.
        yield Step(text.strip().replace("\n", " "), language, code)


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def _change_line(path: Path, line: str, replacement: str) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert lines.count(f"{line}\n") == 1, f"{path} does not have exactly one line {line!r}"
    lines[lines.index(f"{line}\n")] = replacement if replacement.endswith("\n") else f"{replacement}\n"
    path.write_text("".join(lines), encoding="utf-8")
