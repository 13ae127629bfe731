"""The texts that an update prints."""

import shlex
from collections.abc import Iterator, Mapping

from updating.merging import Outcome
from updating.migrations import Chain

KINDS = {
    "A": "added",
    "M": "changed",
    "T": "changed",
    "D": "removed",
    "R": "renamed",
    "U": "with conflicts",
}
ENV_EXAMPLE = ".env.example"
SECRETS_SCRIPT = "deploy/docker/secrets.sh"


def describe_changes(outcome: Outcome) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for status, *paths in sorted(outcome.changes, key=lambda change: change[1:]):
        # A file with a conflict may be listed a second time.
        if status == "U" or paths[-1] not in outcome.conflicts:
            groups.setdefault(KINDS[status], []).append(" -> ".join(paths))
    conflicts = groups.setdefault("with conflicts", [])
    conflicts[:] = sorted({*conflicts, *outcome.conflicts})
    for kind in dict.fromkeys(KINDS.values()):
        if found := groups.get(kind):
            yield f"{len(found)} {'file' if len(found) == 1 else 'files'} {kind}:"
            yield from (f"  {path}" for path in found)


def describe_kept(outcome: Outcome, *, is_rehearsal: bool) -> Iterator[str]:
    kept = outcome.kept
    if kept.deleted:
        yield "Deleted by this project, changed in the template; they stay deleted:"
        yield from (f"  {path}" for path in kept.deleted)
        if not is_rehearsal:
            yield f"  Show the changes: {_diff(outcome, kept.deleted)}"
    if kept.left_out:
        yield "New in the template, in folders that this project has deleted; they are left out:"
        yield from (f"  {path}" for path in kept.left_out)
        if not is_rehearsal:
            yield f"  Show them: {_diff(outcome, kept.left_out)}"
    if kept.migrations:
        yield "Migrations that the new version does not have; they are kept, because databases may have run them:"
        yield from (f"  {path}" for path in kept.migrations)
        yield '  To drop their tables, write a migration: make migrate m="..."'


def _diff(outcome: Outcome, paths: list[str]) -> str:
    # The paths begin at the top folder of the repository, the command may run in another one.
    places = [f":/{path}" for path in paths]
    return shlex.join(["git", "diff", outcome.base[:12], outcome.theirs[:12], "--", *places])


def describe_notes(notes: Mapping[str, list[str]]) -> Iterator[str]:
    if notes:
        yield "Notes of the template about what is new:"
    for section, entries in notes.items():
        yield ""
        yield f"## {section}"
        yield from entries


def describe_options(new: Mapping[str, str], dropped: list[str]) -> Iterator[str]:
    if new:
        chosen = ", ".join(f"{name}={value}" for name, value in new.items())
        yield f"New options, with their defaults: {chosen}. Change one with ANSWERS."
    if dropped:
        yield f"Options that the template no longer has: {', '.join(dropped)}. Their answers are dropped."


def describe_migrations(chain: Chain) -> Iterator[str]:
    for migration in chain.orphans:
        yield (
            f"In {migration.path}, set `down_revision` to {' or '.join(chain.own_heads)}: this project does not have "
            f"its predecessor {' and '.join(migration.parents)}."
        )
    if chain.branches:
        yield f"The migrations have several ends: {', '.join(chain.heads)}. Put the new ones of the template last:"
        yield from (f"  .venv/bin/python -m app db reparent {migration.revision}" for migration in chain.branches)


def describe_next_steps(outcome: Outcome, prefix: str) -> Iterator[str]:
    changed = {path.removeprefix(prefix): status for status, *paths in outcome.changes for path in paths}
    yield "Next:"
    if outcome.conflicts:
        yield "  Resolve the conflicts: HEAD is this project, the other side the template. Then `git add` the files."
    yield "  Review the changes with `git status` and `git diff --cached`."
    if ENV_EXAMPLE in changed:
        yield f"  Compare your .env with {ENV_EXAMPLE}: the update changes only the latter."
    if changed.get(SECRETS_SCRIPT) == "A":
        yield f"  Run {SECRETS_SCRIPT}: it generates the secrets of the containers, which are not in git."
    yield "  Run `make check test`, and commit."
