"""The record of a project, `.cruft.json`, and the answers in it."""

import json
import re
import shlex
from dataclasses import dataclass, replace
from typing import Any

from updating.errors import RefusalError

NAME = ".cruft.json"
# cookiecutter renders answers with this syntax.
TEMPLATE_SYNTAX = re.compile(r"\{[#%{]|^\s*#%")
COMMIT = re.compile(r"[0-9a-f]{7,64}")


def quote_for_template(answer: str) -> str:
    """Return a text that cookiecutter renders as the answer."""
    return f"{{{{ {json.dumps(answer, ensure_ascii=False)} }}}}" if TEMPLATE_SYNTAX.search(answer) else answer


@dataclass(frozen=True)
class Record:
    """The origin of a project. Answers are in the form that cookiecutter renders."""

    template: str
    commit: str
    checkout: str | None
    answers: dict[str, str]
    directory: str | None
    # The record as it was read: entries of other tools are kept.
    content: dict[str, Any]

    def moved(self, commit: str, checkout: str | None, version: str | None, answers: dict[str, str]) -> "Record":
        content = self.content | {
            "commit": commit,
            "checkout": checkout,
            "context": {"cookiecutter": answers},
            "version": version,
        }
        return replace(self, commit=commit, checkout=checkout, answers=answers, content=content)

    def dump(self) -> bytes:
        return (json.dumps(self.content, ensure_ascii=False, indent=2) + "\n").encode()


def parse_record(text: bytes) -> Record:
    try:
        content = json.loads(text)
        record = Record(
            template=content["template"],
            commit=content["commit"],
            checkout=content.get("checkout"),
            answers={name: value for name, value in content["context"]["cookiecutter"].items() if name[0] != "_"},
            directory=content.get("directory"),
            content=content,
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RefusalError(
            f"{NAME} is not a record of a template: {error!r}. Restore it from an earlier commit, "
            "or write it as docs/updating.md describes."
        ) from error
    if record.commit is None:
        raise RefusalError(
            f"{NAME} does not say which commit of the template this project comes from, because it was generated "
            "from a copy without git. Set `commit` in it, as docs/updating.md describes, and commit the file."
        )
    if not isinstance(record.commit, str) or not COMMIT.fullmatch(record.commit):
        raise RefusalError(f"`commit` in {NAME} is {record.commit!r:.80}, but it must be the hash of a commit.")
    if wrong := [name for name, value in record.answers.items() if not isinstance(value, str)]:
        raise RefusalError(f"Put the values of these answers in {NAME} in quotes: {', '.join(wrong)}.")
    return record


def parse_answers(text: str) -> dict[str, str]:
    """Parse `name=value ...`; a value with spaces is in quotes, as in a shell."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise RefusalError(f"ANSWERS has a quote without its end: {text}") from error
    answers: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise RefusalError(
                f"{word!r} in ANSWERS is not of the form name=value. Put a value with spaces in quotes: "
                """ANSWERS='description="A service for all"'"""
            )
        if answers.setdefault(name, value) != value:
            raise RefusalError(f"ANSWERS has two values for {name}. Keep one of them.")
    return answers
