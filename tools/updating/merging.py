"""The three-way merge: rehearsed in a temporary repository, then done by the same command in the project."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from updating import migrations
from updating.git import GitError, Repository
from updating.trees import Entry, Workshop

# git detects renames of all files, follows renamed folders, and does not reuse resolutions of other conflicts. Ignored
# white space and other drivers are left as the project has them.
OPTIONS = (
    *("-c", "merge.renames=true"),
    *("-c", "diff.renames=true"),
    *("-c", "merge.renameLimit=30000"),
    *("-c", "merge.directoryRenames=true"),
    *("-c", "rerere.enabled=false"),
    *("-c", "core.abbrev=12"),
)
CONFLICT = re.compile(r"(?m)^CONFLICT.*$")


def merge_command(commit: str, style: str) -> tuple[str, ...]:
    """Return the arguments of git that merge a commit: its parent is the base, HEAD the other side.

    Unlike `git merge`, this makes no commit and leaves no operation to finish or to abort.
    """
    style_option = ("-c", f"merge.conflictStyle={style}")
    return (*OPTIONS, *style_option, "cherry-pick", "--no-commit", "--strategy=ort", commit)


@dataclass
class Kept:
    """Files that the update leaves as the project has them, although the template has changed them."""

    deleted: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    migrations: list[str] = field(default_factory=list)


@dataclass
class Outcome:
    """The result of the rehearsal."""

    base: str
    # The new version of the template, and the same without the changes that the project does not take.
    theirs: str
    merged: str
    # A commit of the files after the merge, with the markers of conflicts.
    result: str
    kept: Kept
    # Status and path of each file that is changed; a path that is renamed has the status R.
    changes: list[tuple[str, ...]]
    conflicts: list[str]
    explanations: list[str]
    style: str


class Rehearsal:
    def __init__(self, workshop: Workshop, base: str, theirs: str, prefix: str, style: str) -> None:
        self._workshop = workshop
        self._repository = workshop.repository
        self._base, self._theirs, self._prefix, self._style = base, theirs, prefix, style
        self._base_files = self._repository.entries(base)
        self._new_files = self._repository.entries(theirs)
        self._head_files = self._repository.entries("HEAD")
        # New path: old path.
        self._renamed = self._find_renamed()
        self._kept = Kept()

    def run(self) -> Outcome:
        """Merge, and merge again without the changes that the project does not take, until there are none."""
        changes = self._keep_migrations()
        message = self._repository.read("show", "--no-patch", "--format=%B", self._theirs)
        while True:
            merged = self._theirs
            if changes:
                tree = self._workshop.change_tree(self._theirs, changes)
                merged = self._workshop.commit(tree, message, self._base)
            explanations = self._merge(merged)
            more = self._keep_deleted() | self._leave_out()
            if not more.keys() - changes.keys():
                break
            changes |= more
        result = self._workshop.commit(self._workshop.snapshot(), "The result of the update", self._workshop.head)
        return Outcome(
            base=self._base,
            theirs=self._theirs,
            merged=merged,
            result=result,
            kept=self._kept,
            changes=self._list_changes(),
            conflicts=sorted(list_conflicts(self._repository)),
            explanations=explanations,
            style=self._style,
        )

    def _merge(self, commit: str) -> list[str]:
        self._repository.run("reset", "--quiet", "--hard")
        self._repository.run("clean", "--quiet", "-d", "-x", "--force", "--force")
        done = self._repository.attempt(*merge_command(commit, self._style))
        output = (done.stdout + done.stderr).decode(errors="replace")
        if done.returncode not in (0, 1) or (done.returncode == 1 and not list_conflicts(self._repository)):
            raise GitError(f"The merge failed with {done.returncode}: {output}")
        return CONFLICT.findall(output)

    def _find_renamed(self) -> dict[str, str]:
        fields = iter(
            self._repository.list(
                "diff-tree", "-r", "-z", "-M", "-l30000", "--diff-filter=R", "--name-status", self._base, self._theirs
            )
        )
        return {new: old for _, old, new in zip(fields, fields, fields, strict=True)}

    def _keep_migrations(self) -> dict[str, Entry]:
        """A database has run them, so they are kept if the new version does not have them under any name."""
        revisions = {
            migration.revision
            for path in self._new_files
            if migrations.is_migration(path, self._prefix) and (migration := self._parse(self._new_files, path))
        }
        dropped = [
            path
            for path in sorted(self._base_files.keys() - self._new_files.keys())
            if migrations.is_migration(path, self._prefix) and path in self._head_files
        ]
        self._kept.migrations = [
            path
            for path in dropped
            if not (migration := self._parse(self._base_files, path)) or migration.revision not in revisions
        ]
        return {path: self._base_files[path] for path in self._kept.migrations}

    def _parse(self, files: Mapping[str, tuple[str, str]], path: str) -> migrations.Migration | None:
        source = self._repository.run("cat-file", "blob", files[path][1]).decode(errors="replace")
        return migrations.parse_migration(path, source)

    def _keep_deleted(self) -> dict[str, Entry]:
        """Find the files that the project deleted and the template changed: the index has no version of the project."""
        changes: dict[str, Entry] = {}
        for path, stages in list_conflicts(self._repository).items():
            if stages == {1, 3}:
                source = path if path in self._base_files else self._renamed.get(path)
                if source is not None:
                    changes |= {path: None, source: self._base_files[source]}
                    self._kept.deleted.append(source)
        return changes

    def _leave_out(self) -> dict[str, Entry]:
        """Find the new files of the template in folders that the project has deleted."""
        taken = set(self._repository.list("ls-files", "-z"))
        new = self._new_files.keys() - self._base_files.keys() - self._head_files.keys() - self._renamed.keys()
        deleted = _list_folders(self._base_files) - _list_folders(self._head_files)
        left_out = sorted(path for path in new & taken if not deleted.isdisjoint(_list_folders([path])))
        self._kept.left_out += left_out
        return dict.fromkeys(left_out)

    def _list_changes(self) -> list[tuple[str, ...]]:
        fields = iter(self._repository.list("diff", "--cached", "-z", "-M", "-l30000", "--name-status", "HEAD"))
        changes = []
        for status in fields:
            paths = (next(fields), next(fields)) if status[0] == "R" else (next(fields),)
            changes.append((status[0], *paths))
        return changes


def _list_folders(paths: Mapping[str, object] | list[str]) -> set[str]:
    folders = set()
    for path in paths:
        parts = path.split("/")[:-1]
        folders |= {"/".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return folders


def list_conflicts(repository: Repository) -> dict[str, set[int]]:
    """Return the stages of each path with a conflict: 1 is the base, 2 the project, 3 the template."""
    found: dict[str, set[int]] = {}
    for line in repository.list("ls-files", "-z", "--unmerged"):
        head, _, path = line.partition("\t")
        found.setdefault(path, set()).add(int(head.split(" ")[2]))
    return found
