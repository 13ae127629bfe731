"""Requirements that a project must meet before an update."""

from dataclasses import dataclass
from pathlib import Path

from updating import record
from updating.errors import RefusalError
from updating.git import Repository, refuse_old_git

OPERATIONS = {
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
}


@dataclass(frozen=True)
class Project:
    """A project in git: the folder of its repository, and its own folder there as a prefix of paths."""

    repository: Repository
    prefix: str
    record: record.Record
    record_text: bytes


def open_repository(folder: Path) -> tuple[Repository, str]:
    """Return the repository that contains the folder, and the prefix of the folder in it."""
    refuse_old_git()
    inside = Repository(folder)
    top = inside.find("rev-parse", "--show-toplevel")
    if top is None:
        raise RefusalError(
            f"{folder.resolve()} is not in a git repository, or git refuses to read it. The update merges with git: "
            "run `git init`, then commit all files."
        )
    repository = Repository(Path(top))
    if repository.find("rev-parse", "--verify", "--quiet", "HEAD^{commit}") is None:
        raise RefusalError("The repository has no commit yet. Commit all files, then update.")
    return repository, inside.read("rev-parse", "--show-prefix")


def read_project(repository: Repository, prefix: str) -> Project:
    _refuse_unfinished(repository)
    name = f"{prefix}{record.NAME}"
    content = repository.attempt("cat-file", "blob", f"HEAD:{name}")
    if content.returncode != 0:
        exists = (repository.folder / name).exists()
        raise RefusalError(
            f"Commit {record.NAME} first: the update reads it from the last commit."
            if exists
            else f"There is no {record.NAME}, which records the version of the template and the answers. "
            "Write it as docs/updating.md describes, and commit it."
        )
    return Project(repository, prefix, record.parse_record(content.stdout), content.stdout)


def _refuse_unfinished(repository: Repository) -> None:
    for name, operation in OPERATIONS.items():
        if repository.path(name).exists():
            raise RefusalError(f"A {operation} is in progress here. Finish or abort it, then update.")
    if changed := _list_changed(repository):
        raise RefusalError(
            f"These files have changes that are not committed: {_shorten(changed)}. Commit or stash them, then update."
        )
    hidden = [line[2:] for line in repository.list("ls-files", "-v", "-z") if line[0].islower() or line[0] == "S"]
    if hidden:
        raise RefusalError(
            f"git ignores changes of these files (assume-unchanged or skip-worktree): {_shorten(hidden)}. Run "
            "`git update-index --no-assume-unchanged --no-skip-worktree` with them, or end the sparse checkout."
        )


def _list_changed(repository: Repository) -> list[str]:
    fields = iter(repository.list("status", "--porcelain", "-z", "--untracked-files=no", "--ignore-submodules=none"))
    changed = []
    for field in fields:
        changed.append(field[3:])
        if "R" in field[:2] or "C" in field[:2]:
            next(fields)
    return changed


def _shorten(paths: list[str]) -> str:
    shown = ", ".join(paths[:10])
    return f"{shown} and {len(paths) - 10} more" if len(paths) > 10 else shown
