"""Versions of the template: tags, branches and commits of its repository."""

import re
from dataclasses import dataclass

from updating.errors import RefusalError
from updating.git import Repository
from updating.record import Record

RELEASE = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True)
class Version:
    """A commit of the template, its name for people, and the branch that the project follows."""

    commit: str
    label: str
    branch: str | None
    description: str | None


def choose_version(template: Repository, record: Record, wanted: str, *, only_answers: bool) -> Version:
    """Return the version `wanted` or, if it is empty, the default: the branch in the record, or the newest release."""
    if wanted:
        return _find_wanted(template, wanted)
    followed = find_followed(template, record)
    if only_answers:
        return make_version(template, record.commit, followed)
    if followed:
        return make_version(template, _find_branch(template, followed) or "", followed)
    releases = list_releases(template)
    newest = template.read("rev-parse", f"refs/tags/{releases[-1]}^{{commit}}") if releases else _find_default(template)
    # A project may come from a commit after the newest release.
    is_behind = releases and is_ancestor(template, newest, record.commit)
    return make_version(template, record.commit if is_behind else newest, None)


def find_followed(template: Repository, record: Record) -> str | None:
    """Return the branch that the project follows; the record may also name a tag."""
    return record.checkout if record.checkout and _find_branch(template, record.checkout) else None


def make_version(template: Repository, commit: str, branch: str | None) -> Version:
    description = template.find("describe", "--tags", commit)
    date = template.read("show", "--no-patch", "--format=%cs", commit)
    return Version(commit, description or f"{commit[:12]} of {date}", branch, description)


def list_releases(template: Repository) -> list[str]:
    """Return the tags of releases, the oldest first."""
    tags = template.read("tag", "--list").splitlines()
    numbers = {tag: tuple(map(int, match.groups())) for tag in tags if (match := RELEASE.fullmatch(tag))}
    return sorted(numbers, key=lambda tag: numbers[tag])


def find_commit(template: Repository, commit: str) -> str | None:
    """Return the full hash of a commit, which may have to be fetched: a branch may have lost it."""
    found = template.find("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if found is None and template.find("fetch", "--quiet", "--no-write-fetch-head", "origin", commit) is not None:
        found = template.find("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    return found


def is_ancestor(template: Repository, older: str, newer: str) -> bool:
    return template.attempt("merge-base", "--is-ancestor", older, newer).returncode == 0


def _find_wanted(template: Repository, wanted: str) -> Version:
    tag = template.find("rev-parse", "--verify", "--quiet", f"refs/tags/{wanted}^{{commit}}")
    branch = None if tag else _find_branch(template, wanted)
    # A text such as HEAD~1 would mean another commit each time.
    is_hash = re.fullmatch(r"[0-9a-f]{4,64}", wanted)
    commit = tag or branch or (find_commit(template, wanted) if is_hash else None)
    if commit is None:
        raise RefusalError(
            f"The template has no tag, branch or commit {wanted!r}. Its newest releases are "
            f"{', '.join(reversed(list_releases(template)[-5:])) or 'none: VERSION can be a branch or a commit'}."
        )
    return make_version(template, commit, wanted if branch else None)


def _find_branch(template: Repository, name: str) -> str | None:
    for prefix in ("refs/remotes/origin", "refs/heads"):
        if commit := template.find("rev-parse", "--verify", "--quiet", f"{prefix}/{name}^{{commit}}"):
            return commit
    return None


def _find_default(template: Repository) -> str:
    return template.find("rev-parse", "--verify", "--quiet", "refs/remotes/origin/HEAD") or template.read(
        "rev-parse", "HEAD"
    )
