# /// script
# requires-python = ">=3.11"
# dependencies = ["cookiecutter>=2.7.1,<3"]
# ///
"""Update a project to another version of the template, or to other answers, and keep its edits.

`make update` of a project runs this from a clone of the template. It merges the differences between the two versions
into the project, as git merges a branch, and makes no commit.

Exit status: 0 if the update is merged or there is none, 1 if it left conflicts, 2 if it was refused.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from types import FrameType

from updating import checks, journal, migrations, notes, record, rendering, report, versions
from updating.errors import RefusalError
from updating.git import GitError, Repository
from updating.merging import Outcome, Rehearsal, list_conflicts, merge_command
from updating.trees import Workshop

MERGED, CONFLICTS, REFUSED = 0, 1, 2


@dataclass(frozen=True)
class Update:
    """An update of a project, from the version in its record to another one."""

    project: checks.Project
    template: Repository
    old_commit: str
    version: versions.Version
    changed_answers: dict[str, str]

    @property
    def title(self) -> str:
        answers = " ".join(f"{name}={value}" for name, value in self.changed_answers.items())
        return f"Template at {self.version.label}" + (f" with {answers}" if answers else "")


def main() -> int:
    arguments = parse_arguments()
    for stream in (sys.stdout, sys.stderr):
        # Names of files are bytes, which need not be text.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with ending_by_signals(), tempfile.TemporaryDirectory(prefix="template-update-") as folder:
        try:
            return run(arguments, Path(folder).resolve())
        except BrokenPipeError:
            # The reader of the output has ended. Python would fail once more when it flushes the output.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        except (RefusalError, GitError) as error:
            sys.stdout.flush()
            print(f"Not updated. {error}", file=sys.stderr)
            return REFUSED


def parse_arguments() -> argparse.Namespace:
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--template", type=Path, required=True, help="a clone of the template's repository")
    parser.add_argument("--project", type=Path, default=Path(), help="the folder of the project (default: this one)")
    parser.add_argument(
        "--version",
        default="",
        help="tag, branch or commit of the template; default: the branch in the record, or else the newest release, "
        "or else the newest commit. With --answers alone, the version stays",
    )
    parser.add_argument(
        "--answers", default="", help="answers to change: 'name=value ...', values with spaces in quotes as in a shell"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would change, and change nothing")
    return parser.parse_args()


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """End as after an error, so that temporary files are removed."""

    def end(number: int, _: FrameType | None) -> None:
        # A terminal and the launcher may both send the signal.
        for each in journal.HELD:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in journal.HELD:
        # A signal that nohup ignores stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end)
    yield


def run(arguments: argparse.Namespace, folder: Path) -> int:
    repository, prefix = checks.open_repository(arguments.project)
    with journal.lock_project(repository) as lock:
        if arguments.dry_run and repository.path(journal.NAME).exists():
            raise RefusalError("An earlier update was interrupted. Run `make update`, which first undoes it.")
        show([journal.recover(repository) or ""])
        project = checks.read_project(repository, prefix)
        update = plan(project, Repository(arguments.template), arguments)
        if update is None:
            return MERGED
        return perform(update, folder, lock, is_rehearsal=arguments.dry_run)


def plan(project: checks.Project, template: Repository, arguments: argparse.Namespace) -> Update | None:
    """Choose the version and the answers; None if the project has them already."""
    wanted = record.parse_answers(arguments.answers)
    old_commit = versions.find_commit(template, project.record.commit)
    if old_commit is None:
        raise RefusalError(
            f"The template has no commit {project.record.commit}, from which this project comes. If another "
            "repository has it, name that one: make update TEMPLATE=ADDRESS"
        )
    version = versions.choose_version(template, project.record, arguments.version, only_answers=bool(wanted))
    changed = {
        name: value
        for name, value in wanted.items()
        if record.quote_for_template(value) != project.record.answers.get(name)
    }
    refuse_unknown_answers(template, version, project.record, wanted)
    if version.commit == old_commit and not changed and is_followed(template, version, project.record):
        show([f"Already up to date: {version.label}.", *describe_unreleased(template, version)])
        return None
    return Update(project, template, old_commit, version, changed)


def is_followed(template: Repository, version: versions.Version, old: record.Record) -> bool:
    return version.branch == versions.find_followed(template, old)


def describe_unreleased(template: Repository, version: versions.Version) -> Iterator[str]:
    releases = versions.list_releases(template)
    if version.branch is None and releases and releases[-1] != version.description:
        yield f"The newest release is {releases[-1]}. VERSION= can be a branch or a commit with later changes."


def refuse_unknown_answers(
    template: Repository, version: versions.Version, old: record.Record, wanted: dict[str, str]
) -> None:
    options = rendering.read_options(template, version.commit, old.directory)
    if unknown := [name for name in wanted if name not in options]:
        raise RefusalError(
            f"The template at {version.label} has no option {', '.join(unknown)}. Its options are {', '.join(options)}."
        )
    for name, choices in options.items():
        quoted = old.answers.get(name)
        answer = wanted.get(name, quoted)
        if isinstance(choices, list) and answer is not None and answer not in choices:
            raise RefusalError(
                f"The template at {version.label} has no choice {answer!r} for {name}. Choose one of "
                f"{', '.join(choices)}, for example: make update ANSWERS='{name}={choices[0]}'"
            )


def perform(update: Update, folder: Path, lock: int, *, is_rehearsal: bool) -> int:
    project, repository = update.project, update.project.repository
    show(describe_start(update))
    old, new = render(update, folder)
    options = set(rendering.read_options(update.template, update.old_commit, project.record.directory))
    known = options | update.changed_answers.keys()
    added = {name: value for name, value in new.answers.items() if name not in known}
    dropped = sorted(name for name in project.record.answers if name not in new.answers)

    date = update.template.read("show", "--no-patch", "--format=%cI", update.version.commit)
    workshop = Workshop(folder / "workshop", repository, date)
    moved = move_record(update, new.answers)
    base = workshop.commit(
        workshop.build_tree(old.folder, project.record_text, project.prefix), f"Template at {update.old_commit[:12]}"
    )
    tree = workshop.build_tree(new.folder, moved.dump(), project.prefix)
    theirs = workshop.commit(tree, update.title, base)
    style = repository.find("config", "merge.conflictStyle") or "merge"
    outcome = Rehearsal(workshop, base, theirs, project.prefix, style).run()

    chain = read_migrations(workshop, outcome, project.prefix)
    entry = journal.plan(repository, workshop.repository, outcome.result)
    if is_rehearsal:
        planned = "This would change:" if outcome.changes else "This would change nothing."
        show([planned, *report.describe_changes(outcome), *outcome.explanations])
    else:
        apply(repository, workshop, outcome, entry, lock)
        show([*report.describe_changes(outcome), *outcome.explanations])
    show(report.describe_kept(outcome, is_rehearsal=is_rehearsal))
    show(report.describe_options(added, dropped))
    show(report.describe_notes(find_notes(update)))
    show(report.describe_migrations(chain))
    if is_rehearsal:
        show(["Nothing was changed, because this was a dry run."])
    else:
        show(report.describe_next_steps(outcome, project.prefix))
    return CONFLICTS if outcome.conflicts else MERGED


def move_record(update: Update, answers: dict[str, str]) -> record.Record:
    old, version = update.project.record, update.version
    if version.commit == update.old_commit and is_followed(update.template, version, old):
        return old.moved(old.commit, old.checkout, old.content.get("version"), answers)
    return old.moved(version.commit, version.branch, version.description, answers)


def describe_start(update: Update) -> Iterator[str]:
    old = versions.make_version(update.template, update.old_commit, None)
    answers = ", ".join(f"{name}={value}" for name, value in update.changed_answers.items())
    if update.version.commit == update.old_commit:
        yield f"The template stays at {old.label}."
    else:
        yield f"Updating the template from {old.label} to {update.version.label}."
        if versions.is_ancestor(update.template, update.version.commit, update.old_commit):
            yield "This goes back to an older version. Migrations are kept."
    if answers:
        yield f"Changed answers: {answers}."


def render(update: Update, folder: Path) -> tuple[rendering.Rendered, rendering.Rendered]:
    """Render the old version with the answers in the record, and the new one with the changed answers."""
    old = update.project.record
    changed = {name: record.quote_for_template(value) for name, value in update.changed_answers.items()}
    jobs = [(update.old_commit, old.answers, "old"), (update.version.commit, old.answers | changed, "new")]
    with ExitStack() as stack:
        running = []
        for commit, answers, name in jobs:
            rendering.export(update.template, commit, folder / f"{name}-template")
            options = rendering.read_options(update.template, commit, old.directory)
            known = {option: value for option, value in answers.items() if option in options}
            source = folder / f"{name}-template" / (old.directory or "")
            running.append(stack.enter_context(rendering.start_rendering(source, known, folder / name)))
        first = running[0].wait(f"The template at {update.old_commit[:12]}, from which this project comes,")
        return first, running[1].wait(f"The template at {update.version.label}")


def apply(repository: Repository, workshop: Workshop, outcome: Outcome, entry: journal.Journal, lock: int) -> None:
    """Merge in the project as in the rehearsal."""
    source = str(workshop.repository.folder / ".git")
    commits = {"theirs": outcome.theirs, "merged": outcome.merged, "result": outcome.result}
    for name, commit in commits.items():
        workshop.repository.run("update-ref", f"refs/heads/{name}", commit)
    repository.run(
        *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"),
        *("--no-auto-maintenance", source),
        *(f"refs/heads/{name}" for name in commits),
    )
    journal.merge(repository, entry, merge_command(outcome.merged, outcome.style), lock)
    # A merge driver of the project may decide otherwise than the rehearsal, which has none.
    outcome.conflicts = sorted(list_conflicts(repository))


def read_migrations(workshop: Workshop, outcome: Outcome, prefix: str) -> migrations.Chain:
    before, after = (workshop.repository.entries(tree) for tree in ("HEAD", outcome.result))
    sources = {
        path: workshop.repository.run("cat-file", "blob", sha).decode(errors="replace")
        for path, (_, sha) in after.items()
        if migrations.is_migration(path, prefix)
    }
    return migrations.read_chain(sources, sources.keys() - before.keys())


def find_notes(update: Update) -> dict[str, list[str]]:
    directory = update.project.record.directory
    for path in (f"{directory}/CHANGELOG.md", "CHANGELOG.md") if directory else ("CHANGELOG.md",):
        new = update.template.find("show", f"{update.version.commit}:{path}")
        if new is not None:
            return notes.find_new_entries(update.template.find("show", f"{update.old_commit}:{path}") or "", new)
    return {}


def show(lines: Iterable[str]) -> None:
    """Print the lines of a part, and an empty line after them."""
    text = "\n".join(lines)
    if text:
        print(text, end="\n\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
